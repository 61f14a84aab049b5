#include "build.h"

#include <torch/csrc/stable/version.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "common/clones.h"
#include "common/parallel.h"

#ifndef UNLEARNX_CUDA
#define UNLEARNX_CUDA ""
#endif
#ifndef UNLEARNX_ARCHS
#define UNLEARNX_ARCHS ""
#endif

namespace {

/// The clone that UX_CLONES functions resolve to on this processor.
const char* cpu_level() {
#ifdef UX_CPU_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "baseline";
}

}  // namespace

const UnlearnxBuild* unlearnx_build() {
  static const std::string from =
      std::to_string(TORCH_TARGET_VERSION >> 56) + "." + std::to_string(TORCH_TARGET_VERSION >> 48 & 0xff);
  static const UnlearnxBuild build{TORCH_VERSION,  from.c_str(), UNLEARNX_CUDA,
                                   UNLEARNX_ARCHS, __VERSION__,  cpu_level()};
  return &build;
}

int unlearnx_threads_seen() {
  std::set<std::thread::id> seen;
  std::mutex adding;
  const int64_t threads = unlearnx::thread_count();
  unlearnx::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const std::lock_guard lock(adding);
    seen.insert(std::this_thread::get_id());
  });
  return static_cast<int>(seen.size());
}
