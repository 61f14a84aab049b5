// Why kernels of this build do not run on a GPU. Plain C++, so that it is tested without one.
#pragma once

#include <string>

namespace unlearnx::cuda {

/// A GPU and its driver beside the build; versions of CUDA are as its runtime gives them, 13000 for 13.0.
struct Machine {
  int major, minor;      // compute capability
  int driver, compiled;  // CUDA that the driver is for, and that the kernels were compiled by
  const char* archs;     // TORCH_CUDA_ARCH_LIST of the build
};

/// What is wrong with the build or the driver, with the remedy; empty where an error is of another kind. `error` is a
/// cudaError_t.
inline std::string launch_problem(int error, const Machine& m) {
  enum {
    InsufficientDriver = 35,
    CallRequiresNewerDriver = 36,
    InvalidDeviceFunction = 98,
    NoKernelImageForDevice = 209,
    UnsupportedPtxVersion = 222
  };
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  const auto capability = std::to_string(m.major) + "." + std::to_string(m.minor);
  switch (error) {
    case InvalidDeviceFunction:
    case NoKernelImageForDevice:
      return "unlearnx: this build has CUDA kernels for compute capability " + std::string(m.archs) +
             ", but the GPU has " + capability +
             ": install a wheel that has it, or build with TORCH_CUDA_ARCH_LIST=" + capability;
    case InsufficientDriver:
    case CallRequiresNewerDriver:
    case UnsupportedPtxVersion:
      return "unlearnx: this build is of CUDA " + version(m.compiled) + ", but the NVIDIA driver is for CUDA " +
             version(m.driver) +
             ": update the driver, install a wheel of that CUDA, or build with TORCH_CUDA_ARCH_LIST=" + capability;
    default:
      return "";
  }
}

}  // namespace unlearnx::cuda
