#include "cpu/tile_kernels.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/clones.h"
#include "cpu/portable_vector.h"

#ifdef UX_CPU_LEVELS
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace unlearnx::cpu {
namespace {

namespace baseline {
template <typename T>
using Vector = PortableVector<T>;
constexpr int kBlockRows = 4, kBlockVectors = 2;
#include "cpu/tile_kernels.inl"
}  // namespace baseline

#ifdef UX_CPU_LEVELS

#define UX_VECTOR(T, LANES, PREFIX, SUFFIX)                                                            \
  template <>                                                                                          \
  struct Vector<T> {                                                                                   \
    static constexpr int kWidth = sizeof(LANES) / sizeof(T);                                           \
    using Lanes = LANES;                                                                               \
    static UX_INLINE Lanes load(const T* p) { return PREFIX##_loadu_##SUFFIX(p); }                     \
    static UX_INLINE void store(T* p, Lanes v) { PREFIX##_storeu_##SUFFIX(p, v); }                     \
    static UX_INLINE Lanes broadcast(T x) { return PREFIX##_set1_##SUFFIX(x); }                        \
    static UX_INLINE Lanes add(Lanes a, Lanes b) { return PREFIX##_add_##SUFFIX(a, b); }               \
    static UX_INLINE Lanes mul(Lanes a, Lanes b) { return PREFIX##_mul_##SUFFIX(a, b); }               \
    static UX_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return PREFIX##_fmadd_##SUFFIX(a, b, c); } \
  }

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
template <typename T>
struct Vector;
UX_VECTOR(float, __m256, _mm256, ps);
UX_VECTOR(double, __m256d, _mm256, pd);
constexpr int kBlockRows = 6, kBlockVectors = 2;  // 12 of 16 registers hold results
#include "cpu/tile_kernels.inl"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
namespace avx512 {
template <typename T>
struct Vector;
UX_VECTOR(float, __m512, _mm512, ps);
UX_VECTOR(double, __m512d, _mm512, pd);
constexpr int kBlockRows = 12, kBlockVectors = 2;  // 24 of 32 registers hold results
#include "cpu/tile_kernels.inl"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
namespace amx {
using namespace avx512;
#include "cpu/amx_kernels.inl"
}  // namespace amx
#pragma GCC pop_options

/// Whether the processor has matrix units and Linux lets this process use them, which it has to be asked for.
bool has_amx() {
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA
  return __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

}  // namespace

template <typename In, typename T>
const TileKernels<In, T>& tile_kernels() {
  static const TileKernels<In, T> chosen = [] {
#ifdef UX_CPU_LEVELS
    if constexpr (std::is_same_v<In, c10::BFloat16>)
      if (has_amx()) return amx::kernels();
    if (__builtin_cpu_supports("x86-64-v4")) return avx512::kernels<In, T>();
    if (__builtin_cpu_supports("x86-64-v3")) return avx2::kernels<In, T>();
#endif
    return baseline::kernels<In, T>();
  }();
  return chosen;
}

template const TileKernels<float, float>& tile_kernels();
template const TileKernels<double, double>& tile_kernels();
template const TileKernels<c10::BFloat16, float>& tile_kernels();

}  // namespace unlearnx::cpu
