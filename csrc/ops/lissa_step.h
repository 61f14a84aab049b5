#pragma once

#include <ATen/core/Tensor.h>

namespace unlearnx {

/// Raises unless the three lists pair up, damping is finite and scale is positive.
void check_lissa_step(at::TensorList h, at::TensorList v, at::TensorList hv, double damping, double scale);

/// Dtype of the returned norm: float64 where any h is, else float32.
at::ScalarType lissa_norm_type(at::TensorList h);

}  // namespace unlearnx
