#pragma once

#include <cstdint>

#include "common/clones.h"

namespace unlearnx::cpu {

/// The sum of a[i] * b[i] over n values, in so many running sums: fixed in number, so that every CPU level adds in the
/// same order. For leaf functions of their own CPU levels.
template <int Lanes, typename T>
UX_INLINE T inner_product_body(const T* a, const T* b, int64_t n) {
  T sums[Lanes] = {}, total = 0;
  int64_t k = 0;
  for (; k + Lanes <= n; k += Lanes)
    for (int lane = 0; lane < Lanes; ++lane) sums[lane] += a[k + lane] * b[k + lane];
  for (; k < n; ++k) total += a[k] * b[k];
  for (int lane = 0; lane < Lanes; ++lane) total += sums[lane];
  return total;
}

/// The same as a function.
float inner_product(const float* a, const float* b, int64_t n);
double inner_product(const double* a, const double* b, int64_t n);

}  // namespace unlearnx::cpu
