// The only pybind11 unit: importing it registers the ops, build_info() tells how it was made.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "common/clones.h"

#ifndef UNLEARNX_ARCHS
#define UNLEARNX_ARCHS ""
#endif

namespace {

/// The clone that UX_CLONES functions resolve to on this processor.
std::string cpu_level() {
#ifdef UX_CPU_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "baseline";
}

/// Threads that a parallel loop of this module really gets: 1 where OpenMP was left out of the build.
int threads_seen() {
  std::vector<char> seen(at::get_num_threads(), 0);
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { seen[at::get_thread_num()] = 1; });
  return static_cast<int>(std::count(seen.begin(), seen.end(), 1));
}

std::map<std::string, std::string> build_info() {
  return {
      {"torch", UNLEARNX_TORCH}, {"cuda", UNLEARNX_CUDA},    {"cuda_archs", UNLEARNX_ARCHS},
      {"compiler", __VERSION__}, {"cpu_level", cpu_level()}, {"threads", std::to_string(threads_seen())},
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
}
