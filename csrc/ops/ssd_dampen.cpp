#include "ops/ssd_dampen.h"

#include "common/checks.h"
#include "common/dispatcher.h"
#include "ops/overlap.h"

namespace unlearnx {

void check_ssd_dampen(const TensorList& params, const TensorList& importance_full, const TensorList& importance_forget,
                      double alpha, double lam, double exponent, double bound) {
  constexpr auto op = "ssd_dampen_";
  check_written(op, "params", params);
  check_paired(op, "importance_full", importance_full, "params", params);
  check_paired(op, "importance_forget", importance_forget, "params", params);
  check_non_negative(op, "alpha", alpha);
  check_non_negative(op, "lam", lam);
  check_non_negative(op, "exponent", exponent);
  check_non_negative(op, "bound", bound);
  check_overlap(op, {"params", params},
                {{"importance_full", importance_full}, {"importance_forget", importance_forget}}, SamePlace::Allowed);
}

namespace {

Tensor without_device(const TensorList& params, const TensorList& importance_full, const TensorList& importance_forget,
                      double alpha, double lam, double exponent, double bound) {
  check_ssd_dampen(params, importance_full, importance_forget, alpha, lam, exponent, bound);
  check_empty("ssd_dampen_", params);
  return zeros({0}, Like(kLong));
}

}  // namespace
}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def(
      "ssd_dampen_(Tensor(a!)[] params, Tensor[] importance_full, Tensor[] importance_forget, float alpha, "
      "float lam, *, float exponent=1.0, float bound=1.0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("ssd_dampen_", TORCH_BOX(&unlearnx::without_device));
}
