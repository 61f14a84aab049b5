#include "cpu/inner_product.h"

namespace unlearnx::cpu {
namespace {

constexpr int kLanes = 16;

UX_CLONES float sum(const float* a, const float* b, int64_t n) {
  return inner_product_body<kLanes>(a, b, n);
}
UX_CLONES double sum(const double* a, const double* b, int64_t n) {
  return inner_product_body<kLanes>(a, b, n);
}

}  // namespace

float inner_product(const float* a, const float* b, int64_t n) {
  return sum(a, b, n);
}
double inner_product(const double* a, const double* b, int64_t n) {
  return sum(a, b, n);
}

}  // namespace unlearnx::cpu
