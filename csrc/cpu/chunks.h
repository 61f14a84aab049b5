// All tensors of a list as one sequence of chunks, so that a list of many small tensors keeps every core busy
// with a single parallel region. The chunks do not depend on the number of threads, and neither do results
// that are summed over them in order.
#pragma once

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "common/tensor.h"

namespace unlearnx::cpu {

constexpr int64_t kChunk = 1 << 15;

struct Chunk {
  size_t tensor;
  int64_t begin, end;
};

inline std::vector<Chunk> chunks_of(const TensorList& tensors) {
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < tensors.size(); ++t)
    for (int64_t begin = 0; begin < tensors[t].numel(); begin += kChunk)
      chunks.push_back({t, begin, std::min(begin + kChunk, tensors[t].numel())});
  return chunks;
}

/// result[c] = work(chunks[c]), in parallel.
template <typename Result, typename Work>
std::vector<Result> map_chunks(const std::vector<Chunk>& chunks, const Work& work) {
  std::vector<Result> results(chunks.size());
  parallel_for(0, static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) results[c] = work(chunks[c]);
  });
  return results;
}

}  // namespace unlearnx::cpu
