#pragma once

#include "ops/layer_grad.h"

namespace unlearnx {

/// One problem of the conv2d_grad family, checked; every tensor channels-last contiguous, so that x is
/// (samples, height, width, channels) in memory and dy (samples, output_height, output_width, outputs).
///
/// Results are worked out as (outputs, kernel_h, kernel_w, channels / groups) in memory.
struct Conv2dGrad {
  int64_t samples, channels, height, width, outputs, output_height, output_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  Tensor x, dy;
  Tensor x_new, dy_new;  // the same, or undefined
  Tensor weight;         // (samples,) in the compute type, or undefined

  bool paired() const { return x_new.defined(); }
  ScalarType compute_type() const { return unlearnx::compute_type(x); }
  int64_t positions() const { return output_height * output_width; }
  /// Columns of one group's unfolded input.
  int64_t columns() const { return kernel_h * kernel_w * (channels / groups); }
  /// A result of any dtype: `result` as laid out above, seen as (..., outputs, channels / groups, kernel_h, kernel_w).
  Tensor seen_as_weight(const Tensor& result) const;
};

/// Raises unless the arguments belong together; `op` is named in the message.
Conv2dGrad check_conv2d_grad(const char* op, const Tensor& x, const Tensor& dy, const std::vector<int64_t>& kernel_size,
                             const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                             const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                             const std::vector<int64_t>& dilation, int64_t groups);

}  // namespace unlearnx
