#include "ops/conv2d_grad.h"

#include "common/dispatcher.h"
#include "cuda/operands.h"

namespace unlearnx::cuda {
namespace {

Tensor conv2d_grad_diff(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                        const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups, const std::string& reduction) {
  constexpr auto op = "conv2d_grad_diff";
  const bool keep = keeps_samples(op, reduction);
  const auto p = check_conv2d_grad(op, x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  const TileProducts products(p);
  if (keep) return p.seen_as_weight(products.rows());
  return p.seen_as_weight(products.sum(/*squared=*/false).to(x.scalar_type())).clone();
}

Tensor conv2d_grad_sq(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                      const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, int64_t groups) {
  const auto p =
      check_conv2d_grad("conv2d_grad_sq", x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  return p.seen_as_weight(TileProducts(p).sum(/*squared=*/true)).clone();
}

Tensor conv2d_grad_sqnorm(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                          const OptionalTensor& x_new, const OptionalTensor& dy_new, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups) {
  const auto p =
      check_conv2d_grad("conv2d_grad_sqnorm", x, dy, kernel_size, x_new, dy_new, {}, stride, padding, dilation, groups);
  return TileProducts(p).norms();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("conv2d_grad_diff", TORCH_BOX(&conv2d_grad_diff));
  m.impl("conv2d_grad_sq", TORCH_BOX(&conv2d_grad_sq));
  m.impl("conv2d_grad_sqnorm", TORCH_BOX(&conv2d_grad_sqnorm));
}

}  // namespace unlearnx::cuda
