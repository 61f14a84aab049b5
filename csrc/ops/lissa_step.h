#pragma once

#include "common/tensor.h"

namespace unlearnx {

/// Raises unless the three lists pair up, damping is finite and scale is positive.
void check_lissa_step(const TensorList& h, const TensorList& v, const TensorList& hv, double damping, double scale);

/// Dtype of the returned norm: float64 where any h is, else float32.
ScalarType lissa_norm_type(const TensorList& h);

}  // namespace unlearnx
