#include "ops/fisher_mask.h"

#include "common/checks.h"
#include "common/dispatcher.h"
#include "ops/overlap.h"

namespace unlearnx {

FisherMask check_fisher_mask(const TensorList& params, const TensorList& importance_forget,
                             const TensorList& importance_retain, double ratio) {
  constexpr auto op = "fisher_mask_";
  check_written(op, "params", params);
  check_paired(op, "importance_forget", importance_forget, "params", params);
  check_paired(op, "importance_retain", importance_retain, "params", params);
  UX_CHECK_VALUE(ratio >= 0 && ratio <= 1, op, ": ratio is ", ratio, ", expected a number from 0 to 1");
  check_overlap(op, {"params", params},
                {{"importance_forget", importance_forget}, {"importance_retain", importance_retain}},
                SamePlace::Refused);
  int64_t entries = 0;
  bool wide = false;
  for (const auto* list : {&params, &importance_forget, &importance_retain})
    for (const auto& t : *list) wide |= t.scalar_type() == kDouble;
  for (const auto& t : params) entries += t.numel();
  return {static_cast<int64_t>(ratio * static_cast<double>(entries)), wide};
}

namespace {

Tensor without_device(const TensorList& params, const TensorList& importance_forget,
                      const TensorList& importance_retain, double ratio) {
  check_fisher_mask(params, importance_forget, importance_retain, ratio);
  check_empty("fisher_mask_", params);
  return zeros({0}, Like(kLong));
}

}  // namespace
}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def(
      "fisher_mask_(Tensor(a!)[] params, Tensor[] importance_forget, Tensor[] importance_retain, float ratio) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("fisher_mask_", TORCH_BOX(&unlearnx::without_device));
}
