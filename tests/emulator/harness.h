// What every emulated test needs: random data of any dtype, exact-size buffers, a comparison that names the place.
#pragma once

#include "cuda/portable.cuh"

namespace harness {

using unlearnx::cuda::DType;

inline std::mt19937 generator;

template <typename T>
constexpr DType dtype() {
  if constexpr (std::is_same_v<T, double>) return DType::Double;
  if constexpr (std::is_same_v<T, __half>) return DType::Half;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return DType::BFloat16;
  return DType::Float;
}

/// Half the distance between neighbours of 1: the rounding error a stored value may have.
template <typename T>
constexpr double rounding() {
  if constexpr (std::is_same_v<T, double>) return 1e-15;
  if constexpr (std::is_same_v<T, __half>) return 1.0 / 2048;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return 1.0 / 256;
  return 6e-8;
}

template <typename T>
double value_of(T v) {
  return std::is_same_v<T, double> ? static_cast<double>(v) : static_cast<float>(v);
}

template <typename T>
std::vector<T> uniform(int64_t n, double low, double high) {
  std::uniform_real_distribution<double> draw(low, high);
  std::vector<T> values;
  values.reserve(n);
  for (int64_t i = 0; i < n; ++i) values.push_back(static_cast<T>(static_cast<float>(draw(generator))));
  values.shrink_to_fit();
  return values;
}

inline void check(bool condition, const char* what, int64_t place, double expected, double got) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s at %lld: expected %.17g, got %.17g\n", what, static_cast<long long>(place), expected,
               got);
  std::exit(1);
}

inline void check_close(const char* what, int64_t place, double expected, double got, double tolerance) {
  check(std::abs(expected - got) <= tolerance * std::max(1.0, std::abs(expected)), what, place, expected, got);
}

// Tensors with values in a list, beside the 64 that one launch holds.
constexpr int kListLengths[] = {1, 63, 64, 65, 128, 192};

/// Sizes of `count` tensors with values, and of empty ones at both ends and between them.
inline std::vector<int64_t> list_sizes(int count) {
  std::vector<int64_t> sizes = {0};
  for (int i = 0; i < count; ++i) {
    if (i == count / 2) sizes.push_back(0);
    sizes.push_back(i == 1 ? 4097 : i % 40 + 1);
  }
  sizes.push_back(0);
  return sizes;
}

/// Runs `test`; the first argument of the program seeds the data and the order of the fibers.
template <typename Test>
int run(int argc, char** argv, const Test& test) {
  const unsigned seed = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 0;
  emu::seed(seed);
  generator.seed(seed);
  test();
  std::puts("ok");
  return 0;
}

}  // namespace harness
