#pragma once

#include "common/tensor.h"

namespace unlearnx {

/// Raises unless the three lists pair up and the numbers are in range.
void check_ssd_dampen(const TensorList& params, const TensorList& importance_full, const TensorList& importance_forget,
                      double alpha, double lam, double exponent, double bound);

}  // namespace unlearnx
