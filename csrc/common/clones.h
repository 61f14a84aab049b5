// One binary, three instruction sets: the loader picks AVX-512, AVX2 or the baseline when the module starts.
// Put UX_CLONES on leaf functions over raw pointers only; a lambda inside would stay at the baseline.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define UX_CPU_LEVELS 1
#define UX_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define UX_CLONES __attribute__((target_clones("avx512f", "avx2", "default"), noinline))
#else
#define UX_CLONES __attribute__((noinline))
#endif
#define UX_INLINE inline __attribute__((always_inline))
