#include "ops/conv2d_grad.h"

#include <algorithm>

#include "common/checks.h"
#include "common/dispatcher.h"
#include "ops/full_precision.h"

namespace unlearnx {
namespace {

// Of kernel sizes, strides, paddings and dilations: sums and products of two of them fit in 63 bits with room for the
// size of an image.
constexpr int64_t kMost = int64_t{1} << 30;

/// <d_i, v> = sum over outputs of dy_i * conv(x_i, v): one convolution that all samples share.
Tensor conv2d_grad_dot(const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                       const OptionalTensor& x_new, const OptionalTensor& dy_new, const std::vector<int64_t>& stride,
                       const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                       const Tensor& v) {
  constexpr auto op = "conv2d_grad_dot";
  const FullPrecision full_precision(x);
  const auto p = check_conv2d_grad(op, x, dy, kernel_size, x_new, dy_new, {}, stride, padding, dilation, groups);
  check_direction(op, "v", v, dy, {p.outputs, p.channels / p.groups, p.kernel_h, p.kernel_w});
  // oneDNN misreads weights in channels-last order whose strides are odd where a dimension is 1.
  const auto direction = v.to(p.compute_type()).contiguous();
  const auto settings = convolution_settings();
  const std::vector<int64_t> output_padding{0, 0};
  const auto dot = [&](const Tensor& images, const Tensor& gradients) {
    // As conv2d calls it, but for TF32, which is on by default.
    const auto along = dispatch("aten::_convolution", "", images.to(p.compute_type()), direction, OptionalTensor(),
                                stride, padding, dilation, /*transposed=*/false, output_padding, groups,
                                settings.benchmark, settings.deterministic, settings.enabled, /*allow_tf32=*/false);
    return along.mul(gradients).sum({1, 2, 3});
  };
  const auto old = dot(p.x, p.dy);
  return p.paired() ? dot(p.x_new, p.dy_new).sub(old) : old;
}

}  // namespace

Tensor Conv2dGrad::seen_as_weight(const Tensor& result) const {
  const int64_t columns = this->columns(), inputs = channels / groups;
  std::vector<int64_t> sizes{outputs, inputs, kernel_h, kernel_w}, strides{columns, 1, kernel_w * inputs, inputs};
  if (result.dim() == 3) {
    sizes.insert(sizes.begin(), samples);
    strides.insert(strides.begin(), outputs * columns);
  }
  return result.restrided(sizes, strides);
}

Conv2dGrad check_conv2d_grad(const char* op, const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                             const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation, int64_t groups) {
  check_dtypes(op, "x", x, "dy", dy);
  UX_CHECK_VALUE(x.dim() == 4, op, ": x has shape ", x.sizes(), ", expected (N, C, H, W)");
  UX_CHECK_VALUE(dy.dim() == 4 && dy.size(0) == x.size(0), op, ": dy has shape ", dy.sizes(),
                 ", expected (N, O, H', W') with N = ", x.size(0), " as x");
  const auto check_sizes = [op](const char* name, const std::vector<int64_t>& given, int64_t least) {
    const Sizes values(given);
    UX_CHECK_VALUE(values.size() == 2, op, ": ", name, " is ", values, ", expected two values, for rows and columns");
    for (const int64_t v : values)
      UX_CHECK_VALUE(v >= least && v <= kMost, op, ": ", name, " is ", values, ", expected values from ", least, " to ",
                     kMost);
  };
  check_sizes("kernel_size", kernel_size, 1);
  check_sizes("stride", stride, 1);
  check_sizes("padding", padding, 0);
  check_sizes("dilation", dilation, 1);
  const int64_t channels = x.size(1), outputs = dy.size(1);
  UX_CHECK_VALUE(groups >= 1 && channels % groups == 0 && outputs % groups == 0, op, ": groups is ", groups,
                 ", expected a divisor of x's ", channels, " and dy's ", outputs, " channels");
  for (int d = 0; d < 2; ++d) {
    UX_CHECK_VALUE(x.size(2 + d) <= kMost * kMost, op, ": x has shape ", x.sizes(), ", expected images of up to ",
                   kMost * kMost, " rows and columns");
    const int64_t room = x.size(2 + d) + 2 * padding[d] - dilation[d] * (kernel_size[d] - 1) - 1;
    const int64_t expected = room < 0 ? 0 : room / stride[d] + 1;
    UX_CHECK_VALUE(room >= 0 && dy.size(2 + d) == expected, op, ": dy has ", dy.size(2 + d),
                   d == 0 ? " rows" : " columns", ", expected ", expected, " for the ", x.size(2 + d),
                   " of x with kernel_size ", kernel_size[d], ", stride ", stride[d], ", padding ", padding[d],
                   " and dilation ", dilation[d]);
  }
  checked_product(op, "x", x.sizes().from(1));
  checked_product(op, "dy", dy.sizes().from(1));
  checked_product(op, "each sample's gradient",
                  {std::max<int64_t>(x.size(0), 1), outputs, channels / groups, kernel_size[0], kernel_size[1]});
  check_second_pair(op, x, dy, x_new, dy_new);
  Conv2dGrad problem{x.size(0),
                     channels,
                     x.size(2),
                     x.size(3),
                     outputs,
                     dy.size(2),
                     dy.size(3),
                     kernel_size[0],
                     kernel_size[1],
                     stride[0],
                     stride[1],
                     padding[0],
                     padding[1],
                     dilation[0],
                     dilation[1],
                     groups,
                     x.channels_last(),
                     dy.channels_last(),
                     {},
                     {},
                     checked_weight(op, weight, dy)};
  if (x_new.has_value()) {
    problem.x_new = x_new->channels_last();
    problem.dy_new = dy_new->channels_last();
  }
  return problem;
}

}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def(
      "conv2d_grad_diff(Tensor x, Tensor dy, int[2] kernel_size, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "Tensor? weight=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, "
      "str reduction=\"sum\") -> Tensor");
  m.def(
      "conv2d_grad_sq(Tensor x, Tensor dy, int[2] kernel_size, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "Tensor? weight=None, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1) -> Tensor");
  m.def(
      "conv2d_grad_sqnorm(Tensor x, Tensor dy, int[2] kernel_size, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1) -> Tensor");
  m.def(
      "conv2d_grad_dot(Tensor x, Tensor dy, int[2] kernel_size, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, Tensor v) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("conv2d_grad_dot", TORCH_BOX(&unlearnx::conv2d_grad_dot));
}
