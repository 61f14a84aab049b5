// Layers with weights, and their gradients in float64.
#pragma once

#include "harness.h"

namespace harness {

/// A convolution; a linear layer is one of 1 x 1 over images of height `positions` and width 1.
struct Layer {
  int64_t samples, channels, height, width, outputs;
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, padding_h = 0, padding_w = 0;
  int64_t dilation_h = 1, dilation_w = 1, groups = 1;

  int64_t output_height() const { return (height + 2 * padding_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int64_t output_width() const { return (width + 2 * padding_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
  int64_t columns() const { return kernel_h * kernel_w * channels / groups; }
  int64_t size() const { return outputs * columns(); }
};

inline Layer linear(int64_t samples, int64_t positions, int64_t outputs, int64_t inputs) {
  return {samples, inputs, positions, 1, outputs};
}

/// d += sign * dy^T x of sample i, x unfolded, in float64.
template <typename T>
void add_gradient(const Layer& l, const T* x, const T* dy, int64_t i, double sign, std::vector<double>& d) {
  const int64_t channels = l.channels / l.groups, outputs = l.outputs / l.groups;
  for (int64_t t = 0; t < l.output_height() * l.output_width(); ++t)
    for (int64_t k = 0; k < l.columns(); ++k) {
      const int64_t c = k % channels, kw = k / channels % l.kernel_w, kh = k / channels / l.kernel_w;
      const int64_t h = t / l.output_width() * l.stride_h + kh * l.dilation_h - l.padding_h;
      const int64_t w = t % l.output_width() * l.stride_w + kw * l.dilation_w - l.padding_w;
      if (h < 0 || h >= l.height || w < 0 || w >= l.width) continue;
      for (int64_t o = 0; o < l.outputs; ++o) {
        const T value = x[((i * l.height + h) * l.width + w) * l.channels + o / outputs * channels + c];
        const T gradient = dy[(i * l.output_height() * l.output_width() + t) * l.outputs + o];
        d[o * l.columns() + k] += sign * value_of(gradient) * value_of(value);
      }
    }
}

}  // namespace harness
