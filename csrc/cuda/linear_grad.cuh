#include "cuda/linear_grad.h"
#include "cuda/portable.cuh"

namespace unlearnx::cuda {

constexpr int kTile = 64;   // outputs and inputs a block computes
constexpr int kDepth = 16;  // positions in shared memory at a time
constexpr int64_t kMaxGrid = 1 << 20;
constexpr int kPerThread = 4;  // a thread owns kPerThread x kPerThread entries of the tile

/// One sample's rows of one pair, kDepth positions at a time, added to the tile in registers.
template <typename T, typename C>
__device__ __forceinline__ void add_products(const LinearGradArguments& a, const T* x, const T* dy, C factor,
                                             int64_t output, int64_t input, C* dy_tile, C* x_tile,
                                             C (&tile)[kPerThread][kPerThread]) {
  const int column = threadIdx.x % (kTile / kPerThread), row = threadIdx.x / (kTile / kPerThread);
  for (int64_t t0 = 0; t0 < a.positions; t0 += kDepth) {
    for (int e = threadIdx.x; e < kDepth * kTile; e += kThreads) {
      const int64_t t = t0 + e / kTile, o = output + e % kTile, k = input + e % kTile;
      dy_tile[e] = t < a.positions && o < a.outputs ? factor * convert<C>(dy[t * a.outputs + o]) : C(0);
      x_tile[e] = t < a.positions && k < a.inputs ? convert<C>(x[t * a.inputs + k]) : C(0);
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kDepth; ++t)
#pragma unroll
      for (int r = 0; r < kPerThread; ++r)
#pragma unroll
        for (int c = 0; c < kPerThread; ++c)
          tile[r][c] +=
              dy_tile[t * kTile + row * kPerThread + r] * x_tile[t * kTile + c * (kTile / kPerThread) + column];
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    linear_grad_rows_kernel(LinearGradArguments a, T* out, int64_t tiles, int64_t blocks) {
  using C = Compute<T>;
  UX_SHARED(C, dy_tile, kDepth * kTile);
  UX_SHARED(C, x_tile, kDepth * kTile);
  const int64_t columns = (a.inputs + kTile - 1) / kTile;
  const int column = threadIdx.x % (kTile / kPerThread), row = threadIdx.x / (kTile / kPerThread);
  // Tiles of one sample are neighbours in the grid: its rows stay in L2.
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t sample = block / tiles, place = block % tiles;
    const int64_t output = place / columns * kTile, input = place % columns * kTile;
    const int64_t first = sample * a.positions;
    const C weight = a.weight ? static_cast<const C*>(a.weight)[sample] : C(1);
    const auto rows = [&](const void* data, int64_t width) { return static_cast<const T*>(data) + first * width; };
    C tile[kPerThread][kPerThread] = {};
    if (a.x_new)
      add_products(a, rows(a.x_new, a.inputs), rows(a.dy_new, a.outputs), weight, output, input, dy_tile, x_tile, tile);
    add_products(a, rows(a.x, a.inputs), rows(a.dy, a.outputs), a.x_new ? -weight : weight, output, input, dy_tile,
                 x_tile, tile);
    for (int r = 0; r < kPerThread; ++r)
      for (int c = 0; c < kPerThread; ++c) {
        const int64_t o = output + row * kPerThread + r, k = input + c * (kTile / kPerThread) + column;
        if (o < a.outputs && k < a.inputs) out[(sample * a.outputs + o) * a.inputs + k] = convert<T>(tile[r][c]);
      }
  }
}

void linear_grad_rows(const LinearGradArguments& a, DType type, void* out, cudaStream_t stream) {
  const int64_t tiles = ((a.outputs + kTile - 1) / kTile) * ((a.inputs + kTile - 1) / kTile);
  const int64_t blocks = a.samples * tiles;
  if (blocks == 0) return;
  const auto grid = static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid);
  dispatch(type, [&](auto t) {
    using T = typename decltype(t)::type;
    UX_LAUNCH(linear_grad_rows_kernel<T>, dim3(grid), dim3(kThreads), stream, a, static_cast<T*>(out), tiles, blocks);
  });
}

}  // namespace unlearnx::cuda
