// Stands in for csrc/common/parallel.h where the CPU's kernels are compiled without torch: the whole range at once.
#pragma once

#include <cstdint>

namespace unlearnx {

template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t, const Work& work) {
  if (begin < end) work(begin, end);
}

}  // namespace unlearnx
