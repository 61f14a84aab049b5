// The conventions that let one source be compiled by nvcc and executed by the emulator of the tests: kernels get
// shared memory through UX_SHARED alone and are launched by UX_LAUNCH alone.
#pragma once

#include "cuda/interface.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define UX_LAUNCH(kernel, grid, block, stream, ...) kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
#define UX_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#else
#include "cuda_emu.h"
#define UX_LAUNCH(kernel, grid, block, stream, ...) emu::launch((grid), (block), [&] { kernel(__VA_ARGS__); })
#define UX_SHARED(type, name, count) type* name = emu::shared<type, __COUNTER__>(count)
#endif

namespace unlearnx::cuda {

template <typename T>
struct Type {
  using type = T;
};

/// Calls work(Type<T>{}) for the C++ type of `type`.
template <typename Work>
void dispatch(DType type, const Work& work) {
  switch (type) {
    case DType::Float:
      return work(Type<float>{});
    case DType::Double:
      return work(Type<double>{});
    case DType::Half:
      return work(Type<__half>{});
    case DType::BFloat16:
      return work(Type<__nv_bfloat16>{});
  }
}

/// Calls work(Type<double>{}) where `wide`, else work(Type<float>{}).
template <typename Work>
void with_type(bool wide, const Work& work) {
  if (wide)
    work(Type<double>{});
  else
    work(Type<float>{});
}

/// What values of these types are computed in: double where one is double, else float.
template <typename... T>
struct ComputeType {
  using type = float;
};
template <typename... T>
struct ComputeType<double, T...> {
  using type = double;
};
template <typename First, typename... T>
struct ComputeType<First, T...> : ComputeType<T...> {};
template <typename... T>
using Compute = typename ComputeType<T...>::type;

// Explicit conversions: BuildExtension forbids the implicit ones of the 16-bit types.
template <typename To, typename From>
struct Convert {
  static __device__ __forceinline__ To apply(From value) { return static_cast<To>(value); }
};
#ifdef __CUDACC__
template <typename To>
struct Convert<To, __half> {
  static __device__ __forceinline__ To apply(__half value) { return __half2float(value); }
};
template <typename To>
struct Convert<To, __nv_bfloat16> {
  static __device__ __forceinline__ To apply(__nv_bfloat16 value) { return __bfloat162float(value); }
};
template <typename From>
struct Convert<__half, From> {
  static __device__ __forceinline__ __half apply(From value) { return __float2half_rn(static_cast<float>(value)); }
};
template <typename From>
struct Convert<__nv_bfloat16, From> {
  static __device__ __forceinline__ __nv_bfloat16 apply(From value) {
    return __float2bfloat16_rn(static_cast<float>(value));
  }
};
#endif

template <typename To, typename From>
__device__ __forceinline__ To convert(From value) {
  return Convert<To, From>::apply(value);
}

constexpr int kThreads = 256;

/// Sum over a block of kThreads, valid in thread 0; the order of additions is fixed.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  UX_SHARED(T, warps, kThreads / 32);
  for (int offset = 16; offset; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < kThreads / 32; ++w) total += warps[w];
  return total;
}

/// The tensor that this block works on, by bisection over first_block.
template <int Pointers>
__device__ __forceinline__ int tensor_of_block(const TensorTable<Pointers>& table) {
  int low = 0, high = table.count - 1;
  const int block = static_cast<int>(blockIdx.x);
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_block[middle] <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/// For this thread's share of the block's values, store(i, load(i)); neighbouring threads on neighbouring values,
/// four loads in flight before the first store.
template <int Pointers, typename Load, typename Store>
__device__ __forceinline__ void for_block_values(const TensorTable<Pointers>& table, int tensor, const Load& load,
                                                 const Store& store) {
  constexpr int kUnroll = 4;
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) - table.first_block[tensor]) * kBlockValues;
  const int64_t end = begin + kBlockValues < table.numel[tensor] ? begin + kBlockValues : table.numel[tensor];
  for (int64_t base = begin + threadIdx.x; base < end; base += kUnroll * kThreads) {
    decltype(load(base)) loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (base + u * kThreads < end) loaded[u] = load(base + u * kThreads);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (base + u * kThreads < end) store(base + u * kThreads, loaded[u]);
  }
}

}  // namespace unlearnx::cuda
