#include "cuda/ssd_dampen.h"

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "common/tensor_lists.h"
#include "cuda/bindings.h"
#include "ops/ssd_dampen.h"

namespace unlearnx::cuda {
namespace {

at::Tensor ssd_dampen_(at::TensorList params, at::TensorList importance_full, at::TensorList importance_forget,
                       double alpha, double lam, double exponent, double bound) {
  check_ssd_dampen(params, importance_full, importance_forget, alpha, lam, exponent, bound);
  const c10::cuda::CUDAGuard guard(params[0].device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Written p(params);
  const auto counts = at::zeros({static_cast<int64_t>(params.size())}, params[0].options().dtype(at::kLong));
  for_each_table(p.tensors(), p.align(importance_full), p.align(importance_forget),
                 [&](const TensorTable<3>& table, DType type, DType importances) {
                   ssd_dampen(table, type, importances, {alpha, lam, exponent, bound},
                              counts.mutable_data_ptr<int64_t>(), stream);
                   check_launch();
                 });
  p.finish();
  return counts;
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("ssd_dampen_", &ssd_dampen_);
}

}  // namespace unlearnx::cuda
