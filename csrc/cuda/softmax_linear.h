#pragma once

#include "cuda/interface.h"

namespace unlearnx::cuda {

/// u <- p * (u - p.u) * factor along the classes, in place, for every sample and right-hand side: p is
/// (samples, classes) and u (samples, classes, sides), of float64 where `wide`, else float32.
void softmax_rows(const void* p, void* u, int64_t samples, int64_t classes, int64_t sides, double factor, bool wide,
                  cudaStream_t stream);

/// The state of LiSSA for all right-hand sides. h, v and hv are (classes, sides, features) and history is
/// (iterations, sides), of float64 where `wide`, else float32.
struct LissaState {
  void* h;
  const void *v, *hv;
  void* history;
  double* partial;   // lissa_partials() values
  double* smallest;  // (sides,): what goes_on() keeps of each right-hand side
  int64_t* since;
  bool* active;
  int64_t classes, sides, features;
  double keep, inverse_scale;
  int64_t patience;
  bool wide;
};

/// Blocks that share out the state; each leaves the L1 norm of its change in `partial`.
int64_t lissa_partials(int64_t classes, int64_t sides, int64_t features);

/// h <- v + keep * h - hv * inverse_scale for the right-hand sides that are active, then row `iteration` of the history
/// and who stays active. The host waits for nothing.
void lissa_iteration(const LissaState& state, int64_t iteration, cudaStream_t stream);

}  // namespace unlearnx::cuda
