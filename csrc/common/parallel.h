// Parallel loops on the threads of torch.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <exception>
#include <mutex>

#include "common/tensor.h"

namespace unlearnx {

inline int64_t thread_count() {
  uint32_t threads = 1;
  succeed(torch_get_num_threads(&threads), "torch_get_num_threads");
  return threads;
}

/// work(first, last) for parts of [begin, end) of at least `grain`. What it throws is thrown here: torch would lose it.
template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Work& work) {
  struct Call {
    const Work& work;
    std::mutex mutex;
    std::exception_ptr thrown;
  } call{work, {}, nullptr};
  const auto run = [](int64_t first, int64_t last, void* context) {
    auto& call = *static_cast<Call*>(context);
    try {
      call.work(first, last);
    } catch (...) {
      const std::lock_guard lock(call.mutex);
      call.thrown = std::current_exception();
    }
  };
  succeed(torch_parallel_for(begin, end, grain, run, &call), "torch_parallel_for");
  if (call.thrown) std::rethrow_exception(call.thrown);
}

}  // namespace unlearnx
