#include "ops/conv2d_grad.h"

#include "common/dispatcher.h"
#include "cpu/operands.h"

namespace unlearnx::cpu {
namespace {

Tensor conv2d_grad_diff(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                        const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, int64_t groups, const std::string& reduction) {
  constexpr auto op = "conv2d_grad_diff";
  const bool keep = keeps_samples(op, reduction);
  auto p = check_conv2d_grad(op, x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  const auto options = Like(x, p.compute_type());
  const auto result =
      keep ? empty({p.samples, p.outputs, p.columns()}, options) : empty({p.outputs, p.columns()}, options);
  with_operands(p, [&](const auto& operands, auto* w, auto type) {
    auto* const out = result.mutable_data_ptr<decltype(type)>();
    keep ? each_difference(operands, w, out) : sum_differences(operands, w, out);
  });
  const auto seen = p.seen_as_weight(result.to(x.scalar_type()));
  return keep ? seen : seen.clone();
}

Tensor conv2d_grad_sq(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                      const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                      const std::vector<int64_t>& dilation, int64_t groups) {
  auto p =
      check_conv2d_grad("conv2d_grad_sq", x, dy, kernel_size, x_new, dy_new, weight, stride, padding, dilation, groups);
  const auto result = empty({p.outputs, p.columns()}, Like(x, p.compute_type()));
  with_operands(p, [&](const auto& operands, auto* w, auto type) {
    sum_squares(operands, w, result.mutable_data_ptr<decltype(type)>());
  });
  return p.seen_as_weight(result).clone();
}

Tensor conv2d_grad_sqnorm(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                          const OptionalTensor& x_new, const OptionalTensor& dy_new, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups) {
  auto p =
      check_conv2d_grad("conv2d_grad_sqnorm", x, dy, kernel_size, x_new, dy_new, {}, stride, padding, dilation, groups);
  const auto norms = empty({p.samples}, Like(x, p.compute_type()));
  with_operands(p, [&](const auto& operands, auto*, auto type) {
    squared_norms(operands, norms.mutable_data_ptr<decltype(type)>());
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("conv2d_grad_diff", TORCH_BOX(&conv2d_grad_diff));
  m.impl("conv2d_grad_sq", TORCH_BOX(&conv2d_grad_sq));
  m.impl("conv2d_grad_sqnorm", TORCH_BOX(&conv2d_grad_sqnorm));
}

}  // namespace unlearnx::cpu
