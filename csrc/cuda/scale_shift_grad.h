#pragma once

#include "cuda/interface.h"

namespace unlearnx::cuda {

/// All pointers to contiguous device memory.
struct ScaleShiftArguments {
  const void *x, *dy;       // (samples, outer, channels, inner) of one dtype
  const void *mean, *rstd;  // (channels,) in float64 where the dtype is float64, else float32; or both null
  int64_t samples, outer, channels, inner;
};

/// Writes the sums over outer and inner of dy * (x - mean) * rstd and of dy: rows is (2, samples, channels), of the
/// dtype of mean.
void scale_shift_rows(const ScaleShiftArguments& arguments, DType type, void* rows, cudaStream_t stream);

}  // namespace unlearnx::cuda
