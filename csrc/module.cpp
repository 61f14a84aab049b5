// The only pybind11 unit: importing it registers the ops, build_info() tells how it was made.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

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

/// Threads that a parallel loop of this module really gets: 1 where OpenMP was left out of the build. Starts them,
/// after which a forked process cannot use them: not for the import.
int threads_seen() {
  std::vector<char> seen(at::get_num_threads(), 0);
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { seen[at::get_thread_num()] = 1; });
  return static_cast<int>(std::count(seen.begin(), seen.end(), 1));
}

std::map<std::string, std::string> build_info() {
  return {
      {"torch", UNLEARNX_TORCH}, {"cuda", UNLEARNX_CUDA},    {"cuda_archs", UNLEARNX_ARCHS},
      {"compiler", __VERSION__}, {"cpu_level", cpu_level()},
  };
}

#ifndef WITH_CUDA
void no_cuda_kernel(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.operator_name().name,
                              ": this build of unlearnx has no CUDA kernels (it is for torch ", UNLEARNX_TORCH,
                              ", CPU only): install a wheel tagged cu, or build with UNLEARNX_CUDA=1");
}

/// In a build without CUDA every op says so when it gets CUDA tensors.
void refuse_cuda() {
  static torch::Library cuda(torch::Library::IMPL, "unlearnx", c10::DispatchKey::CUDA, __FILE__, __LINE__);
  for (const auto& op : c10::Dispatcher::singleton().getAllOpNames()) {
    if (op.getNamespace() == "unlearnx")
      cuda.impl(op.name.c_str(), torch::CppFunction::makeFromBoxedFunction<&no_cuda_kernel>());
  }
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
#ifndef WITH_CUDA
  refuse_cuda();
#endif
  m.def("build_info", &build_info);
  m.def("threads_seen", &threads_seen);
}
