#include "cpu/convert.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>

#include "common/clones.h"

namespace unlearnx::cpu {
namespace {

// bfloat16 through integers: loops over c10::BFloat16 do not vectorise.
UX_CLONES void widen(const uint16_t* source, int64_t n, float* destination) {
  auto* bits = reinterpret_cast<uint32_t*>(destination);
  for (int64_t i = 0; i < n; ++i) bits[i] = static_cast<uint32_t>(source[i]) << 16;
}

UX_CLONES void narrow(const float* source, int64_t n, uint16_t* destination) {
  const auto* bits = reinterpret_cast<const uint32_t*>(source);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t b = bits[i];
    const uint32_t rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;  // to nearest even
    const bool nan = (b & 0x7fffffff) > 0x7f800000;
    destination[i] = static_cast<uint16_t>(nan ? 0x7fc0 : rounded);
  }
}

template <typename From, typename To>
void cast(const void* source, int64_t n, To* destination) {
  for (int64_t i = 0; i < n; ++i) destination[i] = static_cast<To>(static_cast<const From*>(source)[i]);
}

// The 16-bit types meet double through float.
template <typename Half>
void cast_half(const void* source, int64_t n, double* destination) {
  for (int64_t i = 0; i < n; ++i) destination[i] = static_cast<float>(static_cast<const Half*>(source)[i]);
}

}  // namespace

void to_compute(ScalarType from, const void* source, int64_t n, float* destination) {
  switch (from) {
    case ScalarType::BFloat16:
      return widen(static_cast<const uint16_t*>(source), n, destination);
    case ScalarType::Half:
      return cast<c10::Half>(source, n, destination);
    case ScalarType::Double:
      return cast<double>(source, n, destination);
    default:
      std::memcpy(destination, source, n * sizeof(float));
  }
}

void to_compute(ScalarType from, const void* source, int64_t n, double* destination) {
  switch (from) {
    case ScalarType::BFloat16:
      return cast_half<c10::BFloat16>(source, n, destination);
    case ScalarType::Half:
      return cast_half<c10::Half>(source, n, destination);
    case ScalarType::Float:
      return cast<float>(source, n, destination);
    default:
      std::memcpy(destination, source, n * sizeof(double));
  }
}

void from_compute(ScalarType to, const float* source, int64_t n, void* destination) {
  switch (to) {
    case ScalarType::BFloat16:
      return narrow(source, n, static_cast<uint16_t*>(destination));
    case ScalarType::Half:
      return cast<float>(source, n, static_cast<c10::Half*>(destination));
    case ScalarType::Double:
      return cast<float>(source, n, static_cast<double*>(destination));
    default:
      std::memcpy(destination, source, n * sizeof(float));
  }
}

void from_compute(ScalarType to, const double* source, int64_t n, void* destination) {
  switch (to) {
    case ScalarType::BFloat16:
      return cast<double>(source, n, static_cast<c10::BFloat16*>(destination));
    case ScalarType::Half:
      return cast<double>(source, n, static_cast<c10::Half*>(destination));
    case ScalarType::Float:
      return cast<double>(source, n, static_cast<float*>(destination));
    default:
      std::memcpy(destination, source, n * sizeof(double));
  }
}

}  // namespace unlearnx::cpu
