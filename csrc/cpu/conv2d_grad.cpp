#include "ops/conv2d_grad.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "cpu/operands.h"

namespace unlearnx::cpu {
namespace {

at::Tensor conv2d_grad_diff(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef kernel_size,
                            const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            c10::string_view reduction) {
  constexpr auto op = "conv2d_grad_diff";
  const bool keep = keeps_samples(op, reduction);
  auto p = check_conv2d_grad(op, x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  const auto options = x.options().dtype(p.compute_type());
  const auto result =
      keep ? at::empty({p.samples, p.outputs, p.columns()}, options) : at::empty({p.outputs, p.columns()}, options);
  with_operands(p, [&](const auto& operands, auto* w, auto type) {
    auto* const out = result.mutable_data_ptr<decltype(type)>();
    keep ? each_difference(operands, w, out) : sum_differences(operands, w, out);
  });
  const auto seen = p.seen_as_weight(result.to(x.scalar_type()));
  return keep ? seen : seen.clone(at::MemoryFormat::Contiguous);
}

at::Tensor conv2d_grad_sq(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef kernel_size,
                          const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  auto p =
      check_conv2d_grad("conv2d_grad_sq", x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  const auto result = at::empty({p.outputs, p.columns()}, x.options().dtype(p.compute_type()));
  with_operands(p, [&](const auto& operands, auto* w, auto type) {
    sum_squares(operands, w, result.mutable_data_ptr<decltype(type)>());
  });
  return p.seen_as_weight(result).clone(at::MemoryFormat::Contiguous);
}

at::Tensor conv2d_grad_sqnorm(const at::Tensor& x, const at::Tensor& dy, at::IntArrayRef kernel_size,
                              const OptionalTensor& x_new, const OptionalTensor& dy_new, at::IntArrayRef stride,
                              at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  auto p =
      check_conv2d_grad("conv2d_grad_sqnorm", x, dy, kernel_size, x_new, dy_new, {}, stride, padding, dilation, groups);
  const auto norms = at::empty({p.samples}, x.options().dtype(p.compute_type()));
  with_operands(p, [&](const auto& operands, auto*, auto type) {
    squared_norms(operands, norms.mutable_data_ptr<decltype(type)>());
  });
  return norms;
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("conv2d_grad_diff", &conv2d_grad_diff);
  m.impl("conv2d_grad_sq", &conv2d_grad_sq);
  m.impl("conv2d_grad_sqnorm", &conv2d_grad_sqnorm);
}

}  // namespace unlearnx::cpu
