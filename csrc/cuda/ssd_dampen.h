#pragma once

#include "cuda/interface.h"

namespace unlearnx::cuda {

struct DampenRule {
  double alpha, lam, exponent, bound;
};

/// Dampens parameters (data[0], of dtype `params`) by the importances over the full set (data[1]) and over the
/// forget set (data[2], both of dtype `importances`); adds the dampened entries of tensor t to counts[index[t]].
void ssd_dampen(const TensorTable<3>& table, DType params, DType importances, DampenRule rule, int64_t* counts,
                cudaStream_t stream);

}  // namespace unlearnx::cuda
