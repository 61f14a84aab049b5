// Products of per-sample matrices in registers, for the instruction set of the processor at hand.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>

namespace unlearnx::cpu {

enum class Epilogue { Assign, Add, AddSquare };

/// How a convolution reads one channels-last image: geometry of the window, and the image's own sizes.
struct Window {
  int64_t height, width, channels, pixel;  // channels of a group; values between neighbouring pixels
  int64_t output_height, output_width, kernel_height, kernel_width;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

/// In: dtype of inputs and output gradients. T: what they are added up in. A panel is a strip of `rows` (of dy) or
/// `columns` (of x) values side by side, position after position; a block is rows x columns results. Panels are as deep
/// as depth_of says: kernels may lay several narrow positions in the room of one T, and fill panels up with zeros.
template <typename In, typename T>
struct TileKernels {
  int rows, columns;
  int unit, share;  // a panel's positions are a multiple of the first; so many of them share the room of one T
  void (*assign)(int64_t depth, const T* a, const T* b, T weight, T* block);
  void (*add)(int64_t depth, const T* a, const T* b, T weight, T* block);
  void (*add_product_square)(int64_t depth, const T* a, const T* b, T weight, T* block);
  void (*add_squares)(int64_t n, const T* values, T weight, T* squares);
  T (*sum_squares)(int64_t n, const T* values);
  void (*square)(int64_t n, T* values);  // null where panels do not hold T
  void (*pack_outputs)(const In* source, int64_t stride, int64_t count, int64_t n, bool negated, int64_t depth,
                       T* panels);
  void (*pack_inputs)(const In* source, int64_t stride, int64_t count, int64_t n, int64_t depth, T* panels);
  void (*pack_unfolded)(const In* image, const Window& window, int64_t begin, int64_t end, int64_t column, int64_t n,
                        int64_t depth, T* panels);
  void (*enter)();  // on every thread before it multiplies, and after; null where there is nothing to do
  void (*leave)();

  int64_t depth_of(int64_t positions) const { return (positions + unit - 1) / unit * unit / share; }
};

/// The fastest kernels that this processor can run. <float, float>, <double, double>, <c10::BFloat16, float>.
template <typename In, typename T>
const TileKernels<In, T>& tile_kernels();

}  // namespace unlearnx::cpu
