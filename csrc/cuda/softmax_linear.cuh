#include "common/patience.h"
#include "cuda/portable.cuh"
#include "cuda/softmax_linear.h"

namespace unlearnx::cuda {

/// `Lanes` neighbouring threads take one right-hand side of one sample: one thread where neighbours in memory are
/// neighbouring right-hand sides, or a warp where many classes are to be shared out.
template <typename T, int Lanes>
__global__ void __launch_bounds__(kThreads)
    softmax_rows_kernel(const T* p, T* u, int64_t samples, int64_t classes, int64_t sides, T factor) {
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / Lanes;
  if (item >= samples * sides) return;  // whole warps where Lanes is 32
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  p += item / sides * classes;
  u += item / sides * classes * sides + item % sides;
  T mean = 0;
  for (int64_t c = lane; c < classes; c += Lanes) mean += p[c] * u[c * sides];
#pragma unroll
  for (int offset = Lanes / 2; offset; offset /= 2) mean += __shfl_xor_sync(0xffffffffu, mean, offset);
  for (int64_t c = lane; c < classes; c += Lanes) u[c * sides] = p[c] * factor * (u[c * sides] - mean);
}

constexpr int64_t kLissaColumns = 1024;  // features a block updates, of one row (class, right-hand side)

inline int64_t column_blocks(int64_t features) {
  return (features + kLissaColumns - 1) / kLissaColumns;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) lissa_update_kernel(LissaState s, int64_t across) {
  const int64_t row = blockIdx.x / across, begin = blockIdx.x % across * kLissaColumns;
  if (!s.active[row % s.sides]) return;
  const int64_t end = begin + kLissaColumns < s.features ? begin + kLissaColumns : s.features;
  T* h = static_cast<T*>(s.h) + row * s.features;
  const T* v = static_cast<const T*>(s.v) + row * s.features;
  const T* hv = static_cast<const T*>(s.hv) + row * s.features;
  const T keep = static_cast<T>(s.keep), inverse_scale = static_cast<T>(s.inverse_scale);
  T change = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const T next = v[i] + keep * h[i] - hv[i] * inverse_scale;
    const T difference = next - h[i];
    change += difference < 0 ? -difference : difference;
    h[i] = next;
  }
  const double total = block_sum(static_cast<double>(change));
  if (threadIdx.x == 0) s.partial[blockIdx.x] = total;
}

/// A block for each right-hand side: its change, added in a fixed order, and whether it goes on.
template <typename T>
__global__ void __launch_bounds__(kThreads) lissa_patience_kernel(LissaState s, int64_t across, int64_t iteration) {
  const int64_t side = blockIdx.x;
  if (!s.active[side]) return;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < s.classes * across; i += kThreads)
    sum += s.partial[(i / across * s.sides + side) * across + i % across];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  const T update = static_cast<T>(sum);
  static_cast<T*>(s.history)[iteration * s.sides + side] = update;
  s.active[side] = goes_on(static_cast<double>(update), s.patience, s.smallest[side], s.since[side]);
}

void softmax_rows(const void* p, void* u, int64_t samples, int64_t classes, int64_t sides, double factor, bool wide,
                  cudaStream_t stream) {
  constexpr int kWarp = 32;
  const bool shared_out = classes > kWarp && sides < kWarp;
  const int64_t threads = samples * sides * (shared_out ? kWarp : 1);
  if (threads == 0 || classes == 0) return;
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
  with_type(wide, [&](auto t) {
    using T = typename decltype(t)::type;
    const T* const probabilities = static_cast<const T*>(p);
    T* const rows = static_cast<T*>(u);
    const T scaled = static_cast<T>(factor);
    if (shared_out)
      UX_LAUNCH((softmax_rows_kernel<T, kWarp>), grid, dim3(kThreads), stream, probabilities, rows, samples, classes,
                sides, scaled);
    else
      UX_LAUNCH((softmax_rows_kernel<T, 1>), grid, dim3(kThreads), stream, probabilities, rows, samples, classes, sides,
                scaled);
  });
}

int64_t lissa_partials(int64_t classes, int64_t sides, int64_t features) {
  return classes * sides * column_blocks(features);
}

void lissa_iteration(const LissaState& state, int64_t iteration, cudaStream_t stream) {
  const int64_t blocks = lissa_partials(state.classes, state.sides, state.features);
  if (blocks == 0) return;
  const int64_t across = column_blocks(state.features);
  const dim3 grid(static_cast<unsigned>(blocks)), sides(static_cast<unsigned>(state.sides));
  with_type(state.wide, [&](auto t) {
    using T = typename decltype(t)::type;
    UX_LAUNCH(lissa_update_kernel<T>, grid, dim3(kThreads), stream, state, across);
    UX_LAUNCH(lissa_patience_kernel<T>, sides, dim3(kThreads), stream, state, across, iteration);
  });
}

}  // namespace unlearnx::cuda
