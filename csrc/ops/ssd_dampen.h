#pragma once

#include <ATen/core/Tensor.h>

namespace unlearnx {

/// Raises unless the three lists pair up and the numbers are in range.
void check_ssd_dampen(at::TensorList params, at::TensorList importance_full, at::TensorList importance_forget,
                      double alpha, double lam, double exponent, double bound);

}  // namespace unlearnx
