#include <cuda_runtime_api.h>
#include <torch/csrc/stable/macros.h>

#include <string>

#include "common/errors.h"
#include "cuda/bindings.h"
#include "cuda/launch_problem.h"

namespace unlearnx::cuda {

void check_launch() {
  const cudaError_t error = cudaPeekAtLastError();
  if (error == cudaSuccess) return;
  Machine m{0, 0, 0, CUDART_VERSION, UNLEARNX_ARCHS};
  int device = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&m.major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&m.minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDriverGetVersion(&m.driver);
  const auto problem = launch_problem(error, m);
  if (!problem.empty()) cudaGetLastError();  // torch would report it of whatever comes next
  UX_CHECK_IMPLEMENTED(problem.empty(), problem);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace unlearnx::cuda
