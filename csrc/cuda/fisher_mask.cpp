#include "cuda/fisher_mask.h"

#include "common/dispatcher.h"
#include "common/tensor_lists.h"
#include "cuda/bindings.h"
#include "ops/fisher_mask.h"

namespace unlearnx::cuda {
namespace {

Tensor fisher_mask_(const TensorList& params, const TensorList& importance_forget, const TensorList& importance_retain,
                    double ratio) {
  const auto mask = check_fisher_mask(params, importance_forget, importance_retain, ratio);
  const DeviceGuard guard(params[0]);
  const Written p(params, Walk::Index);
  auto forget = p.align(importance_forget), retain = p.align(importance_retain);
  promote_pairs(forget, retain);  // here, since all passes read what it makes

  // Launches group tensors by dtype; ties are numbered in the order of the list.
  std::vector<int64_t> first_block;
  int64_t blocks = 0;
  for (const auto& t : params) {
    first_block.push_back(blocks);
    blocks += (t.numel() + kBlockValues - 1) / kBlockValues;
  }
  const Like like(params[0], kLong);
  const auto ties = empty({blocks + 1}, like);
  const auto selection = empty({static_cast<int64_t>(sizeof(Selection) / sizeof(int64_t))}, like);
  const auto counts = zeros({static_cast<int64_t>(params.size())}, like);
  std::vector<MaskedTensors> parts;
  for_each_table(p.tensors(), forget, retain, [&](const TensorTable<3>& table, DType type, DType importances) {
    MaskedTensors part{table, type, importances, {}};
    for (int t = 0; t < table.count; ++t) part.ties[t] = ties.mutable_data_ptr<int64_t>() + first_block[table.index[t]];
    parts.push_back(part);
  });
  fisher_mask(parts, mask.wide, mask.selected, static_cast<Selection*>(selection.mutable_data_ptr()),
              ties.mutable_data_ptr<int64_t>(), blocks, counts.mutable_data_ptr<int64_t>(), guard.stream());
  check_launch();
  p.finish();
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("fisher_mask_", TORCH_BOX(&fisher_mask_));
}

}  // namespace unlearnx::cuda
