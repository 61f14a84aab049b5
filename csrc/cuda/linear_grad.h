#pragma once

#include "cuda/interface.h"

namespace unlearnx::cuda {

/// All pointers to contiguous device memory of one dtype; weight in its compute type.
struct LinearGradArguments {
  const void *x, *dy;          // (samples * positions, inputs), (samples * positions, outputs)
  const void *x_new, *dy_new;  // the same, or null
  const void* weight;          // (samples,) in float64 where the dtype is float64, else float32; or null
  int64_t samples, positions, outputs, inputs;
};

/// Writes every w_i d_i: out is (samples, outputs, inputs) of the same dtype.
void linear_grad_rows(const LinearGradArguments& arguments, DType type, void* out, cudaStream_t stream);

}  // namespace unlearnx::cuda
