// Vectors of 16 bytes for processors of which nothing is known, by the compiler's vector extensions.
#pragma once

#include <cstring>

#include "common/clones.h"

namespace unlearnx::cpu {

template <typename T>
struct PortableVector {
  static constexpr int kWidth = 16 / sizeof(T);
  typedef T Lanes __attribute__((vector_size(16)));
  static UX_INLINE Lanes load(const T* p) {
    Lanes v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static UX_INLINE void store(T* p, Lanes v) { std::memcpy(p, &v, sizeof(v)); }
  static UX_INLINE Lanes broadcast(T x) { return x - Lanes{}; }
  static UX_INLINE Lanes add(Lanes a, Lanes b) { return a + b; }
  static UX_INLINE Lanes mul(Lanes a, Lanes b) { return a * b; }
  static UX_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return a * b + c; }
};

}  // namespace unlearnx::cpu
