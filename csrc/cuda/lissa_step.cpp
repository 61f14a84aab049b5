#include "cuda/lissa_step.h"

#include "common/dispatcher.h"
#include "common/tensor_lists.h"
#include "cuda/bindings.h"
#include "ops/lissa_step.h"

namespace unlearnx::cuda {
namespace {

Tensor lissa_step_(const TensorList& h, const TensorList& v, const TensorList& hv, double damping, double scale) {
  check_lissa_step(h, v, hv, damping, scale);
  const DeviceGuard guard(h[0]);
  const cudaStream_t stream = guard.stream();
  const Written state(h);
  int64_t blocks = 0;
  for (const auto& t : h) blocks += (t.numel() + kBlockValues - 1) / kBlockValues;
  const auto partial = empty({blocks}, Like(h[0], kDouble));
  auto* next = partial.mutable_data_ptr<double>();
  for_each_table(state.tensors(), state.align(v), state.align(hv),
                 [&](const TensorTable<3>& table, DType type, DType rest) {
                   lissa_step(table, type, rest, 1 - damping, 1 / scale, next, stream);
                   check_launch();
                   next += table.blocks();
                 });
  const auto norm = empty({}, Like(h[0], lissa_norm_type(h)));
  lissa_norm(partial.const_data_ptr<double>(), blocks, norm.mutable_data_ptr(), norm.scalar_type() == kDouble, stream);
  check_launch();
  state.finish();
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("lissa_step_", TORCH_BOX(&lissa_step_));
}

}  // namespace unlearnx::cuda
