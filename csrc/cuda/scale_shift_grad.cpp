#include "cuda/scale_shift_grad.h"

#include <torch/library.h>

#include "cuda/bindings.h"
#include "ops/scale_shift_grad.h"

namespace unlearnx::cuda {
namespace {

void launch_rows(const ScaleShiftGrad& p, const at::Tensor& rows) {
  const c10::cuda::CUDAGuard guard(p.dy.device());
  const ScaleShiftArguments arguments{pointer(p.x), pointer(p.dy), pointer(p.mean), pointer(p.rstd),
                                      p.samples,    p.outer,       p.channels,      p.inner};
  scale_shift_rows(arguments, dtype_of(p.dy), rows.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  check_launch();
}

std::tuple<at::Tensor, at::Tensor> scale_shift_grad_diff(const at::Tensor& x, const at::Tensor& dy,
                                                         const OptionalTensor& x_new, const OptionalTensor& dy_new,
                                                         const OptionalTensor& weight, const OptionalTensor& mean,
                                                         const OptionalTensor& rstd, int64_t dim,
                                                         c10::string_view reduction) {
  return unlearnx::scale_shift_grad_diff(&launch_rows, x, dy, x_new, dy_new, weight, mean, rstd, dim, reduction);
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("scale_shift_grad_diff", &scale_shift_grad_diff);
}

}  // namespace unlearnx::cuda
