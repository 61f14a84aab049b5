// Reading and writing any floating dtype in runs of at most kRun values, computing in float or double.
#pragma once

#include <cstdint>

#include "common/tensor.h"

namespace unlearnx::cpu {

constexpr int64_t kRun = 1024;

void to_compute(ScalarType from, const void* source, int64_t n, float* destination);
void to_compute(ScalarType from, const void* source, int64_t n, double* destination);
void from_compute(ScalarType to, const float* source, int64_t n, void* destination);
void from_compute(ScalarType to, const double* source, int64_t n, void* destination);

template <typename Compute>
constexpr ScalarType type_of = sizeof(Compute) == 8 ? ScalarType::Double : ScalarType::Float;

inline int64_t size_of(ScalarType type) {
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

/// One operand of a run: the caller's memory where its dtype is the compute type, else a converted copy.
template <typename Compute>
class Operand {
 public:
  Operand(ScalarType type, const void* data)
      : type_(type), size_(size_of(type)), data_(static_cast<const char*>(data)) {}

  const Compute* read(int64_t begin, int64_t n) {
    const void* source = data_ + begin * size_;
    if (type_ == type_of<Compute>) return static_cast<const Compute*>(source);
    to_compute(type_, source, n, buffer_);
    return buffer_;
  }

  /// The values of a run to be changed in place; write() stores them.
  Compute* open(int64_t begin, int64_t n) { return const_cast<Compute*>(read(begin, n)); }

  void write(int64_t begin, int64_t n) {
    if (type_ != type_of<Compute>) from_compute(type_, buffer_, n, const_cast<char*>(data_) + begin * size_);
  }

 private:
  ScalarType type_;
  int64_t size_;
  const char* data_;
  Compute buffer_[kRun];
};

}  // namespace unlearnx::cpu
