// What bindings and launchers share. Plain C++: included by files that nvcc never sees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

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

/// Tensors that pair up in a list op: one that is written, of dtype `written`, and two of dtype `read`.
struct TensorTriple {
  void* data[3];
  int64_t numel;
  DType written, read;
};

/// A list as launches of equal dtypes: calls launch(table, written, read). No table is empty, since a grid without
/// blocks is an error on a GPU.
template <typename Launch>
void for_each_table(const std::vector<TensorTriple>& list, const Launch& launch) {
  std::map<std::pair<DType, DType>, TensorTable<3>> tables;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const TensorTriple& t = list[i];
    if (t.numel == 0) continue;
    const auto dtypes = std::pair(t.written, t.read);
    auto& table = tables[dtypes];
    table.add(static_cast<int>(i), t.numel, t.data);
    if (!table.full()) continue;
    launch(table, t.written, t.read);
    tables.erase(dtypes);
  }
  for (const auto& [dtypes, table] : tables) launch(table, dtypes.first, dtypes.second);
}

}  // namespace unlearnx::cuda
