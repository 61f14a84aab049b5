#include "cpu/inner_product.h"

#include "common/clones.h"

namespace unlearnx::cpu {
namespace {

// Sixteen running sums: fixed in number, so that every CPU level adds in the same order.
constexpr int kLanes = 16;

template <typename T>
UX_INLINE T sum_body(const T* a, const T* b, int64_t n) {
  T sums[kLanes] = {}, total = 0;
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a[k + lane] * b[k + lane];
  for (; k < n; ++k) total += a[k] * b[k];
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane];
  return total;
}

UX_CLONES float sum(const float* a, const float* b, int64_t n) {
  return sum_body(a, b, n);
}
UX_CLONES double sum(const double* a, const double* b, int64_t n) {
  return sum_body(a, b, n);
}

}  // namespace

float inner_product(const float* a, const float* b, int64_t n) {
  return sum(a, b, n);
}
double inner_product(const double* a, const double* b, int64_t n) {
  return sum(a, b, n);
}

}  // namespace unlearnx::cpu
