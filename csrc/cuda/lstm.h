#pragma once

#include "cuda/interface.h"

namespace unlearnx::cuda {

/// N rows of H units, in float64 where `wide`, else float32.
struct CellsSize {
  int64_t rows, units;
  bool wide;
};

// Arguments of the passes over the cells of one step: gates (N, 4H), all else (N, H), contiguous device memory.

struct CellsForward {
  const void *gates, *before;
  void *after, *hidden;
};

struct CellsBackward {
  const void *gates, *before, *after, *dh;
  const void* source;  // of the gates, or null
  void *dc, *dc_before, *da;
};

struct CellsTangent {
  const void *gates, *before, *after, *da, *dc_before;
  void *dc, *dh;
};

/// Of all steps: gates (T, N, 4H), all else (T + 1, N, H).
struct CellsCurvature {
  const void *cells, *gates, *cells_tangent, *gates_tangent, *to_hidden, *to_cells;
  void *out_cells, *out_gates;
  int64_t steps;
};

void lstm_cells(const CellsForward& pass, const CellsSize& size, cudaStream_t stream);
void lstm_cells(const CellsBackward& pass, const CellsSize& size, cudaStream_t stream);
void lstm_cells(const CellsTangent& pass, const CellsSize& size, cudaStream_t stream);
void lstm_cells(const CellsCurvature& pass, const CellsSize& size, cudaStream_t stream);

}  // namespace unlearnx::cuda
