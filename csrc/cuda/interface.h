// What bindings and launchers share. Plain C++: included by files that nvcc never sees.
#pragma once

#include <cstdint>

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace unlearnx::cuda {

enum class DType { Float, Double, Half, BFloat16 };

constexpr int kTableSize = 64;          // tensors a launch; longer lists take several
constexpr int64_t kBlockValues = 4096;  // values a block works on

/// A list of tensors as one launch: `Pointers` data pointers for each. Block b works on values of the tensor t
/// with first_block[t] <= b < first_block[t + 1]. Travels in kernel-argument memory, hence the limit.
template <int Pointers>
struct TensorTable {
  void* data[Pointers][kTableSize];
  int64_t numel[kTableSize];
  int first_block[kTableSize + 1];
  int index[kTableSize];  // place of the tensor in the caller's list
  int count;

  TensorTable() : count(0) { first_block[0] = 0; }

  int blocks() const { return first_block[count]; }
  bool full() const { return count == kTableSize; }

  void add(int place, int64_t n, void* const (&pointers)[Pointers]) {
    for (int p = 0; p < Pointers; ++p) data[p][count] = pointers[p];
    numel[count] = n;
    index[count] = place;
    first_block[count + 1] = first_block[count] + static_cast<int>((n + kBlockValues - 1) / kBlockValues);
    ++count;
  }
};

}  // namespace unlearnx::cuda
