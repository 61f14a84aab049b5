// Kernels with planted bugs, by name: the emulator has to die of each of them. Without one, what looks like them is
// right and passes.
#include <map>
#include <string>

#include "cuda/intrinsics.cuh"
#include "harness.h"

using namespace unlearnx::cuda;

struct alignas(16) Four {
  float at[4];
};

__global__ void nothing() {}

__global__ void too_much_shared_memory() {
  UX_SHARED(float, large, 12 * 1024);
  UX_SHARED(float, more, 1);
  large[0] = more[0] = 0;
}

__global__ void vectors(float* data, bool loads) {
  if (threadIdx.x) return;
  if (loads)
    data[0] = reinterpret_cast<const Four*>(data + 4)->at[0];
  else
    *reinterpret_cast<Four*>(data + 4) = Four{};
}

__global__ void copies(const float* from, float* out, int offset, bool wait, bool barrier) {
  UX_SHARED(float, values, 8);
  if (threadIdx.x == 0) {
    copy_async<16>(values + offset, from, true);
    commit_copies();
    if (wait) wait_copies<0>();
  }
  if (barrier) __syncthreads();
  out[threadIdx.x] = values[offset + threadIdx.x % 4];
  if (barrier) __syncthreads();
}

__global__ void copied_over_too_early(const float* from, float* out) {
  UX_SHARED(float, values, 32);
  values[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = values[31 - threadIdx.x];
  copy_async<4>(values + threadIdx.x, from, true);
}

__global__ void matrix(int offset) {
  UX_SHARED(uint16_t, rows, 32 * 8 + 8);
  for (int i = 0; i < 9 && threadIdx.x + 32 * i < 32 * 8 + 8; ++i) rows[threadIdx.x + 32 * i] = 0;
  __syncthreads();
  unsigned values[4];
  load_matrices_transposed(values, rows + threadIdx.x * 8 + offset);
}

__global__ void divergent_barrier() {
  if (threadIdx.x % 2) __syncthreads();
  __shfl_down_sync(0xffffffffu, 0, 1);
}

__global__ void barrier_after_return() {
  if (threadIdx.x < 5) return;
  __syncthreads();
}

__global__ void different_barriers() {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
}

/// Values pass from thread to thread through shared memory.
__global__ void exchange(int* out, bool write, bool barrier, bool again) {
  UX_SHARED(int, values, kThreads);
  if (write) values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (barrier) __syncthreads();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
  if (again) values[threadIdx.x] = 0;
}

__global__ void two_writers() {
  UX_SHARED(int, value, 1);
  value[0] = 1;
}

__global__ void counts(bool initialised, bool barrier) {
  UX_SHARED(int, count, 1);
  if (initialised && threadIdx.x == 0) count[0] = 0;
  if (barrier) __syncthreads();
  atomicAdd(&count[0], 1);
}

__global__ void shared_overflow(int* out) {
  UX_SHARED(int, values, kThreads);
  values[threadIdx.x + 1] = 1;
  out[threadIdx.x] = 0;
}

__global__ void global_overflow(int* out) {
  out[threadIdx.x + 1] = 0;
}

__global__ void shuffles(unsigned mask_of_first, unsigned mask, bool returns) {
  if (returns && threadIdx.x == 1) return;
  __shfl_down_sync(threadIdx.x == 0 ? mask_of_first : mask, 0, 1);
}

int main(int argc, char** argv) {
  std::vector<int> out(kThreads);
  std::vector<float> data(kThreads);
  float* const floats = data.data();
  const dim3 one(1), warp(32), threads(kThreads);
  const unsigned all = 0xffffffffu;
  const std::map<std::string, std::function<void()>> bugs = {
      {"empty_grid", [&] { UX_LAUNCH(nothing, dim3(0), threads, nullptr); }},
      {"too_large_grid", [&] { UX_LAUNCH(nothing, dim3(1, 65536), threads, nullptr); }},
      {"no_threads", [&] { UX_LAUNCH(nothing, one, dim3(0), nullptr); }},
      {"too_many_threads", [&] { UX_LAUNCH(nothing, one, dim3(1025), nullptr); }},
      {"too_much_shared_memory", [&] { UX_LAUNCH(too_much_shared_memory, one, one, nullptr); }},
      {"misaligned_load", [&] { UX_LAUNCH(vectors, one, one, nullptr, floats + 1, true); }},
      {"misaligned_store", [&] { UX_LAUNCH(vectors, one, one, nullptr, floats + 1, false); }},
      {"misaligned_copy", [&] { UX_LAUNCH(copies, one, warp, nullptr, floats, floats, 1, true, true); }},
      {"misaligned_matrix", [&] { UX_LAUNCH(matrix, one, warp, nullptr, 1); }},
      {"divergent_barrier", [&] { UX_LAUNCH(divergent_barrier, one, threads, nullptr); }},
      {"barrier_after_return", [&] { UX_LAUNCH(barrier_after_return, one, threads, nullptr); }},
      {"different_barriers", [&] { UX_LAUNCH(different_barriers, one, threads, nullptr); }},
      {"uninitialised_read", [&] { UX_LAUNCH(exchange, one, threads, nullptr, out.data(), false, true, false); }},
      {"uninitialised_atomic", [&] { UX_LAUNCH(counts, one, threads, nullptr, false, true); }},
      {"copy_not_waited_for", [&] { UX_LAUNCH(copies, one, warp, nullptr, floats, floats, 0, false, true); }},
      {"missing_barrier", [&] { UX_LAUNCH(exchange, one, threads, nullptr, out.data(), true, false, false); }},
      {"overwritten_too_early", [&] { UX_LAUNCH(exchange, one, threads, nullptr, out.data(), true, true, true); }},
      {"copied_over_too_early", [&] { UX_LAUNCH(copied_over_too_early, one, warp, nullptr, floats, floats); }},
      {"two_writers", [&] { UX_LAUNCH(two_writers, one, threads, nullptr); }},
      {"atomic_and_not", [&] { UX_LAUNCH(counts, one, threads, nullptr, true, false); }},
      {"shared_overflow", [&] { UX_LAUNCH(shared_overflow, one, threads, nullptr, out.data()); }},
      {"global_overflow", [&] { UX_LAUNCH(global_overflow, one, threads, nullptr, out.data()); }},
      {"lane_outside_mask", [&] { UX_LAUNCH(shuffles, one, warp, nullptr, 2u, all, false); }},
      {"lane_that_returned", [&] { UX_LAUNCH(shuffles, one, warp, nullptr, all, all, true); }},
      {"lane_not_named", [&] { UX_LAUNCH(shuffles, one, one, nullptr, 1u, all, false); }},
  };
  if (argc > 1) {
    bugs.at(argv[1])();
  } else {
    UX_LAUNCH(nothing, dim3(2, 2, 2), dim3(4, 4, 4), nullptr);
    UX_LAUNCH(vectors, one, one, nullptr, floats, true);
    UX_LAUNCH(vectors, one, one, nullptr, floats, false);
    UX_LAUNCH(copies, one, warp, nullptr, floats, floats, 4, true, true);
    UX_LAUNCH(matrix, one, warp, nullptr, 0);
    UX_LAUNCH(exchange, dim3(3), threads, nullptr, out.data(), true, true, false);
    UX_LAUNCH(counts, one, threads, nullptr, true, true);
    UX_LAUNCH(shuffles, one, warp, nullptr, all, all, false);
    for (int i = 0; i < kThreads; ++i) harness::check(out[i] == kThreads - 1 - i, "out", i, kThreads - 1 - i, out[i]);
  }
  std::puts("ok");
}
