// Kernels with planted bugs: the emulator has to find each of them.
#include <string>

#include "harness.h"

using namespace unlearnx::cuda;

__global__ void missing_barrier(int* out) {
  UX_SHARED(int, values, kThreads);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

__global__ void divergent_barrier() {
  if (threadIdx.x % 2) __syncthreads();
  __shfl_down_sync(0xffffffffu, 0, 1);
}

__global__ void shared_overflow(int* out) {
  UX_SHARED(int, values, kThreads);
  values[threadIdx.x + 1] = 1;
  out[threadIdx.x] = 0;
}

__global__ void global_overflow(int* out) {
  out[threadIdx.x + 1] = 0;
}

__global__ void lane_outside_mask() {
  __shfl_down_sync(threadIdx.x == 0 ? 2u : ~0u, 0, 1);
}

int main(int, char** argv) {
  const std::string bug = argv[1];
  std::vector<int> out(kThreads);
  const dim3 threads(kThreads);
  if (bug == "missing_barrier") {
    UX_LAUNCH(missing_barrier, dim3(1), threads, nullptr, out.data());
    for (int i = 0; i < kThreads; ++i) harness::check(out[i] == kThreads - 1 - i, "out", i, kThreads - 1 - i, out[i]);
  }
  if (bug == "divergent_barrier") UX_LAUNCH(divergent_barrier, dim3(1), threads, nullptr);
  if (bug == "shared_overflow") UX_LAUNCH(shared_overflow, dim3(1), threads, nullptr, out.data());
  if (bug == "global_overflow") UX_LAUNCH(global_overflow, dim3(1), threads, nullptr, out.data());
  if (bug == "lane_outside_mask") UX_LAUNCH(lane_outside_mask, dim3(1), dim3(32), nullptr);
  std::puts("ok");
}
