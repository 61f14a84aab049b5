#include "ops/full_precision.h"

#include <torch/version.h>

#include <mutex>

namespace unlearnx {
namespace {

/// Switches of the process, shared by the threads that are inside of an op.
struct Switches {
  std::mutex mutex;
  int inside = 0;
  bool onednn = false, cublaslt = false;  // whether they were on and are to be on again
};

Switches& switches() {
  static Switches instance;
  return instance;
}

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 10
bool reduces(const char* backend, const char* op) {
  const auto precision = at::globalContext().float32Precision(backend, op);
  return precision == "tf32" || precision == "bf16";
}
bool onednn_reduces() {
  return reduces("mkldnn", "matmul") || reduces("mkldnn", "conv");
}
bool cublas_reduces() {
  return reduces("cuda", "matmul");
}
#else
bool reduces(at::Float32Backend backend, at::Float32Op op) {
  const auto precision = at::globalContext().float32Precision(backend, op);
  return precision == at::Float32Precision::TF32 || precision == at::Float32Precision::BF16;
}
bool onednn_reduces() {
  return reduces(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL) ||
         reduces(at::Float32Backend::MKLDNN, at::Float32Op::CONV);
}
bool cublas_reduces() {
  return reduces(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
}
#endif

}  // namespace

FullPrecision::FullPrecision() : autocast_(c10::autocast_dispatch_keyset) {
  auto& shared = switches();
  auto& context = at::globalContext();
  const std::lock_guard lock(shared.mutex);
  if (shared.inside++ > 0) return;
  shared.onednn = context.userEnabledMkldnn() && onednn_reduces();
  if (shared.onednn) context.setUserEnabledMkldnn(false);
  // cuBLASLt does not ask the guard that cuBLAS asks.
  shared.cublaslt = context.blasPreferredBackend() == at::BlasBackend::Cublaslt && cublas_reduces();
  if (shared.cublaslt) context.setBlasPreferredBackend(at::BlasBackend::Cublas);
}

FullPrecision::~FullPrecision() {
  auto& shared = switches();
  auto& context = at::globalContext();
  const std::lock_guard lock(shared.mutex);
  if (--shared.inside > 0) return;
  if (shared.onednn) context.setUserEnabledMkldnn(true);
  if (shared.cublaslt) context.setBlasPreferredBackend(at::BlasBackend::Cublaslt);
}

}  // namespace unlearnx
