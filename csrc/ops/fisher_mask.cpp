#include "ops/fisher_mask.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "common/checks.h"
#include "ops/overlap.h"

namespace unlearnx {

FisherMask check_fisher_mask(at::TensorList params, at::TensorList importance_forget, at::TensorList importance_retain,
                             double ratio) {
  constexpr auto op = "fisher_mask_";
  check_written(op, "params", params);
  check_paired(op, "importance_forget", importance_forget, "params", params);
  check_paired(op, "importance_retain", importance_retain, "params", params);
  TORCH_CHECK_VALUE(ratio >= 0 && ratio <= 1, op, ": ratio is ", ratio, ", expected a number from 0 to 1");
  check_overlap(op, {"params", params},
                {{"importance_forget", importance_forget}, {"importance_retain", importance_retain}},
                SamePlace::Refused);
  int64_t entries = 0;
  bool wide = false;
  for (const auto list : {params, importance_forget, importance_retain})
    for (const auto& t : list) wide |= t.scalar_type() == at::kDouble;
  for (const auto& t : params) entries += t.numel();
  return {static_cast<int64_t>(ratio * static_cast<double>(entries)), wide};
}

namespace {

at::Tensor without_device(at::TensorList params, at::TensorList importance_forget, at::TensorList importance_retain,
                          double ratio) {
  check_fisher_mask(params, importance_forget, importance_retain, ratio);
  check_empty("fisher_mask_", params);
  return at::zeros({0}, at::kLong);
}

}  // namespace
}  // namespace unlearnx

TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def(
      "fisher_mask_(Tensor(a!)[] params, Tensor[] importance_forget, Tensor[] importance_retain, float ratio) "
      "-> Tensor");
}

TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("fisher_mask_", &unlearnx::without_device);
}
