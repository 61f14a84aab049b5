#include "ops/conv2d_grad.h"

#include <torch/library.h>

#include "cuda/operands.h"

namespace unlearnx::cuda {
namespace {

at::Tensor conv2d_grad_diff(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef kernel_size,
                            const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            c10::string_view reduction) {
  constexpr auto op = "conv2d_grad_diff";
  const bool keep = keeps_samples(op, reduction);
  const auto p = check_conv2d_grad(op, x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  const TileProducts products(p);
  if (keep) return p.seen_as_weight(products.rows());
  return p.seen_as_weight(products.sum(/*squared=*/false).to(x.scalar_type())).clone(at::MemoryFormat::Contiguous);
}

at::Tensor conv2d_grad_sq(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef kernel_size,
                          const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const auto p =
      check_conv2d_grad("conv2d_grad_sq", x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  return p.seen_as_weight(TileProducts(p).sum(/*squared=*/true)).clone(at::MemoryFormat::Contiguous);
}

at::Tensor conv2d_grad_sqnorm(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef kernel_size,
                              const OptionalTensor& x_new, const OptionalTensor& dy_new, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const auto p =
      check_conv2d_grad("conv2d_grad_sqnorm", x, dy, kernel_size, x_new, dy_new, {}, stride, padding, dilation, groups);
  return TileProducts(p).norms();
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("conv2d_grad_diff", &conv2d_grad_diff);
  m.impl("conv2d_grad_sq", &conv2d_grad_sq);
  m.impl("conv2d_grad_sqnorm", &conv2d_grad_sqnorm);
}

}  // namespace unlearnx::cuda
