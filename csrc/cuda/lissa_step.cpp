#include "cuda/lissa_step.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "common/tensor_lists.h"
#include "cuda/bindings.h"
#include "ops/lissa_step.h"

namespace unlearnx::cuda {
namespace {

at::Tensor lissa_step_(at::TensorList h, at::TensorList v, at::TensorList hv, double damping, double scale) {
  check_lissa_step(h, v, hv, damping, scale);
  const c10::cuda::CUDAGuard guard(h[0].device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Written state(h);
  int64_t blocks = 0;
  for (const auto& t : h) blocks += (t.numel() + kBlockValues - 1) / kBlockValues;
  const auto options = h[0].options();
  const auto partial = at::empty({blocks}, options.dtype(at::kDouble));
  auto* next = partial.mutable_data_ptr<double>();
  for_each_table(state.tensors(), state.align(v), state.align(hv),
                 [&](const TensorTable<3>& table, DType type, DType rest) {
                   lissa_step(table, type, rest, 1 - damping, 1 / scale, next, stream);
                   check_launch();
                   next += table.blocks();
                 });
  const auto norm = at::empty({}, options.dtype(lissa_norm_type(h)));
  lissa_norm(partial.const_data_ptr<double>(), blocks, norm.mutable_data_ptr(), norm.scalar_type() == at::kDouble,
             stream);
  check_launch();
  state.finish();
  return norm;
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("lissa_step_", &lissa_step_);
}

}  // namespace unlearnx::cuda
