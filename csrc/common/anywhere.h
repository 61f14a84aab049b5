// Functions shared by CPU and CUDA. Always inlined: a leaf compiled for several CPU levels takes them along.
#pragma once

#ifdef __CUDACC__
#define UX_ANYWHERE __host__ __device__ __forceinline__
#else
#define UX_ANYWHERE inline __attribute__((always_inline))
#endif
