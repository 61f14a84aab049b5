#pragma once

#include "cuda/interface.h"

namespace unlearnx::cuda {

/// How every position of a sample sees its image (height, width, groups, channels): as one row of a matrix, with a
/// column for every (row, column, channel) of the window. Sizes, and the pixels of an image, are below 2^30.
struct Window {
  int height, width, channels, output_height, output_width, kernel_width;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

/// The window that sees rows (positions, channels) as they are.
inline Window whole_rows(int positions, int channels) {
  return {positions, 1, channels, positions, 1, 1, 1, 1, 0, 0, 1, 1};
}

/// Per-sample products d_i = dy_i^T x_i of one layer, a matrix (groups * outputs, columns) each. With two pairs the
/// product of the first is subtracted from that of the second.
struct TileProblem {
  const void *x[2], *dy[2];  // images, and rows (samples, positions, groups * outputs), of one dtype, contiguous
  Window window;             // of x
  int pairs;
  const void* weight;  // (samples,) in float64 where the dtype is float64, else float32; or null
  int64_t samples, groups;
  int64_t outputs, columns;  // of a group
};

/// What the launch needs to know of the device.
struct Processor {
  int multiprocessors;
  bool tensor_cores;  // with bfloat16: compute capability 8.0 or above
};

enum class TilePath { Small, Plain, TensorCores };

/// How a problem is cut into blocks: each takes one tile of the matrix and `block_samples` of the samples.
struct TilePlan {
  TilePath path;
  bool vectorised;  // neighbouring values are loaded 16 bytes at a time
  int64_t tiles, block_samples, splits;
  int64_t norm_parts;  // partial sums of each squared norm
};
TilePlan plan_tiles(const TileProblem& problem, DType type, Processor processor);

/// Writes every w_i d_i: rows is (samples, groups * outputs, columns) of the dtype.
void tile_rows(const TileProblem& problem, const TilePlan& plan, DType type, void* rows, cudaStream_t stream);

/// Writes sum_i w_i d_i, or w_i d_i^2 where `squared`, to a matrix of the compute type; `parts` is (splits, matrix),
/// or null where there is one split.
void tile_sum(const TileProblem& problem, const TilePlan& plan, DType type, bool squared, void* parts, void* matrix,
              cudaStream_t stream);

/// Writes every squared norm of d_i: norms is (samples,), parts (norm_parts, samples), both of the compute type.
void tile_norms(const TileProblem& problem, const TilePlan& plan, DType type, void* parts, void* norms,
                cudaStream_t stream);

}  // namespace unlearnx::cuda
