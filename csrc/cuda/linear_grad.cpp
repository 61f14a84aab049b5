#include "cuda/linear_grad.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "cuda/bindings.h"
#include "ops/linear_grad.h"

namespace unlearnx::cuda {
namespace {

const void* pointer(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

at::Tensor linear_grad_diff(const at::Tensor& x, const at::Tensor& dy, const std::optional<at::Tensor>& x_new,
                            const std::optional<at::Tensor>& dy_new, const std::optional<at::Tensor>& weight,
                            c10::string_view reduction) {
  constexpr auto op = "linear_grad_diff";
  const c10::impl::ExcludeDispatchKeyGuard full_precision(c10::autocast_dispatch_keyset);
  const auto problem = check_linear_grad(op, x, dy, x_new, dy_new, weight);
  const c10::cuda::CUDAGuard guard(x.device());
  if (!keeps_samples(op, reduction)) return linear_grad_sum(problem);
  const auto out = at::empty({problem.samples, problem.outputs, problem.inputs}, x.options());
  const LinearGradArguments arguments{pointer(problem.x),      pointer(problem.dy),     pointer(problem.x_new),
                                      pointer(problem.dy_new), pointer(problem.weight), problem.samples,
                                      problem.positions,       problem.outputs,         problem.inputs};
  linear_grad_rows(arguments, dtype_of(x), out.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("linear_grad_diff", &linear_grad_diff);
}

}  // namespace unlearnx::cuda
