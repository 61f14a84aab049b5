#include "ops/lissa_step.h"

#include "common/checks.h"
#include "common/dispatcher.h"
#include "ops/overlap.h"

namespace unlearnx {

void check_lissa_step(const TensorList& h, const TensorList& v, const TensorList& hv, double damping, double scale) {
  constexpr auto op = "lissa_step_";
  check_written(op, "h", h);
  check_paired(op, "v", v, "h", h);
  check_paired(op, "hv", hv, "h", h);
  check_non_negative(op, "damping", damping);
  UX_CHECK_VALUE(std::isfinite(scale) && scale > 0, op, ": scale is ", scale, ", expected a finite number > 0");
  check_overlap(op, {"h", h}, {{"v", v}, {"hv", hv}}, SamePlace::Allowed);
}

ScalarType lissa_norm_type(const TensorList& h) {
  for (const auto& t : h)
    if (t.scalar_type() == kDouble) return kDouble;
  return kFloat;
}

namespace {

Tensor without_device(const TensorList& h, const TensorList& v, const TensorList& hv, double damping, double scale) {
  check_lissa_step(h, v, hv, damping, scale);
  check_empty("lissa_step_", h);
  return zeros({}, Like(lissa_norm_type(h)));
}

}  // namespace
}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def("lissa_step_(Tensor(a!)[] h, Tensor[] v, Tensor[] hv, float damping, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("lissa_step_", TORCH_BOX(&unlearnx::without_device));
}
