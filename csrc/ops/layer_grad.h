// What the per-sample gradient families of all layers share: checks of their arguments.
#pragma once

#include <optional>

#include "common/tensor.h"

namespace unlearnx {

/// Dtype that sums are taken in: differences of 16-bit sums would cancel what rounding left of them.
inline ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == kDouble ? kDouble : kFloat;
}

/// Raises unless x and dy are floating tensors of one dtype on one device.
void check_dtypes(const char* op, const char* x_name, const Tensor& x, const char* dy_name, const Tensor& dy);

/// Raises unless a second pair is complete and like the first in shape, dtype and device, or absent.
void check_second_pair(const char* op, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                       const OptionalTensor& dy_new);

/// The samples' weights (N,), contiguous, in the compute type of dy; undefined where there are none.
Tensor checked_weight(const char* op, const OptionalTensor& weight, const Tensor& dy);

/// Raises unless v is floating, on the device of dy and of the given shape.
void check_direction(const char* op, const char* name, const Tensor& v, const Tensor& dy, Sizes shape);

/// True for reduction="none", false for "sum"; raises for anything else.
bool keeps_samples(const char* op, const std::string& reduction);

/// Number of positions (N, positions..., K) of a sample.
inline int64_t positions_of(const Tensor& t) {
  int64_t positions = 1;
  for (int64_t d = 1; d + 1 < t.dim(); ++d) positions *= t.size(d);
  return positions;
}

}  // namespace unlearnx
