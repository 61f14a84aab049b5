// exp, sigmoid and tanh without branches, for loops that the compiler is to vectorise. Within two units in the last
// place of the exact values (tanh and sigmoid absolutely, which are at most 1).
// Polynomials: S. L. Moshier, Cephes mathematical library (exp, tanh in float and double).
#pragma once

#include <cstdint>
#include <cstring>

#include "common/clones.h"

namespace unlearnx::cpu {

template <typename To, typename From>
UX_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

UX_INLINE float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const float shifted = x * 1.44269504088896341f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return bits_as<float>(bits_as<int32_t>(p) + (bits_as<int32_t>(shifted) << 23));
}

UX_INLINE double exp_of(double x) {
  x = x < -708.0 ? -708.0 : x;
  x = x > 709.0 ? 709.0 : x;
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = x * 1.4426950408889634073599 + kShift;
  const double n = shifted - kShift;
  const double r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  const double z = r * r;
  const double p = r * ((1.26177193074810590878e-4 * z + 3.02994407707441961300e-2) * z + 9.99999999999999999910e-1);
  const double q = ((3.00198505138664455042e-6 * z + 2.52448340349684104192e-3) * z + 2.27265548208155028766e-1) * z +
                   2.00000000000000000005;
  const double value = 1.0 + 2.0 * (p / (q - p));
  return bits_as<double>(bits_as<int64_t>(value) + static_cast<int64_t>(bits_as<uint64_t>(shifted) << 52));
}

template <typename T>
UX_INLINE T sigmoid_of(T x) {
  return 1 / (1 + exp_of(-x));
}

/// tanh where |x| < 0.625, which the quotient of exponentials would spoil.
UX_INLINE float small_tanh(float x) {
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  return p * z * x + x;
}
UX_INLINE double small_tanh(double x) {
  const double z = x * x;
  const double p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3;
  const double q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3;
  return x + x * z * (p / q);
}

template <typename T>
UX_INLINE T tanh_of(T x) {
  const T magnitude = x < 0 ? -x : x;
  const T large = 1 - 2 / (exp_of(2 * magnitude) + 1);
  return magnitude < T(0.625) ? small_tanh(x) : x < 0 ? -large : large;
}

}  // namespace unlearnx::cpu
