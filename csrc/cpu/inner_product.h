#pragma once

#include <cstdint>

namespace unlearnx::cpu {

/// The sum of a[i] * b[i] over n values.
float inner_product(const float* a, const float* b, int64_t n);
double inner_product(const double* a, const double* b, int64_t n);

}  // namespace unlearnx::cpu
