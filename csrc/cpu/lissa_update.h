#pragma once

#include <cstdint>

namespace unlearnx::cpu {

/// h <- v + keep * h - hv * inverse_scale for n values; returns the L1 norm of the change.
double lissa_update(float* h, const float* v, const float* hv, int64_t n, float keep, float inverse_scale);
double lissa_update(double* h, const double* v, const double* hv, int64_t n, double keep, double inverse_scale);

}  // namespace unlearnx::cpu
