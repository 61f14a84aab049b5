#include "ops/lissa_step.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "common/checks.h"
#include "ops/overlap.h"

namespace unlearnx {

void check_lissa_step(at::TensorList h, at::TensorList v, at::TensorList hv, double damping, double scale) {
  constexpr auto op = "lissa_step_";
  check_written(op, "h", h);
  check_paired(op, "v", v, "h", h);
  check_paired(op, "hv", hv, "h", h);
  check_non_negative(op, "damping", damping);
  TORCH_CHECK_VALUE(std::isfinite(scale) && scale > 0, op, ": scale is ", scale, ", expected a finite number > 0");
  check_overlap(op, {"h", h}, {{"v", v}, {"hv", hv}}, SamePlace::Allowed);
}

at::ScalarType lissa_norm_type(at::TensorList h) {
  for (const auto& t : h)
    if (t.scalar_type() == at::kDouble) return at::kDouble;
  return at::kFloat;
}

namespace {

at::Tensor without_device(at::TensorList h, at::TensorList v, at::TensorList hv, double damping, double scale) {
  check_lissa_step(h, v, hv, damping, scale);
  check_empty("lissa_step_", h);
  return at::zeros({}, lissa_norm_type(h));
}

}  // namespace
}  // namespace unlearnx

TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def("lissa_step_(Tensor(a!)[] h, Tensor[] v, Tensor[] hv, float damping, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("lissa_step_", &unlearnx::without_device);
}
