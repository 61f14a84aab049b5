// Instructions that C++ has no words for: copies to shared memory in the background, and products on tensor cores.
// The emulator of the tests has functions of the same names.
#pragma once

#include <type_traits>

#include "cuda/portable.cuh"

#ifdef __CUDACC__
namespace unlearnx::cuda {

/// Starts copying Bytes (4, 8 or 16) from global to shared memory, both aligned to them; zeros where not `inside`.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const auto source = __cvta_generic_to_global(from);
  const int size = inside ? Bytes : 0;
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(source), "n"(Bytes), "r"(size)
                 : "memory");
#else
  using Word = unsigned;
  for (int i = 0; i < Bytes / static_cast<int>(sizeof(Word)); ++i)
    static_cast<Word*>(to)[i] = inside ? static_cast<const Word*>(from)[i] : 0;
#endif
}

/// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits for the thread's own copies, but for its last `Pending` groups.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

/// Four 8x8 matrices of 16-bit values, transposed: lane l gives the address of row l % 8 of matrix l / 8 in shared
/// memory, and gets values (2 * (l % 4), l / 4) and (2 * (l % 4) + 1, l / 4) of each.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&values)[4], const void* row) {
#if __CUDA_ARCH__ >= 800
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  __trap();
#endif
}

/// sum += a b for a warp's a (16 x 16) and b (16 x 8) of dtype T, as `mma.m16n8k16` lays them out.
template <typename T>
__device__ __forceinline__ void multiply_add(float* sum, const unsigned (&a)[4], const unsigned* b) {
#if __CUDA_ARCH__ >= 800
#define UX_MMA(type)                                                                  \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, __half>)
    UX_MMA("f16");
  else
    UX_MMA("bf16");
#undef UX_MMA
#else
  __trap();
#endif
}

}  // namespace unlearnx::cuda
#endif
