#pragma once

#include "cuda/interface.h"

namespace unlearnx::cuda {

/// h <- v + keep * h - hv * inverse_scale for h (data[0], of dtype `state`), v (data[1]) and hv (data[2], both of
/// dtype `rest`); writes the L1 norm of the change made by each block to partial[0 .. table.blocks()).
void lissa_step(const TensorTable<3>& table, DType state, DType rest, double keep, double inverse_scale,
                double* partial, cudaStream_t stream);

/// norm[0] = sum of partial[0 .. n), added in a fixed order; norm is float64 where `wide`, else float32.
void lissa_norm(const double* partial, int64_t n, void* norm, bool wide, cudaStream_t stream);

}  // namespace unlearnx::cuda
