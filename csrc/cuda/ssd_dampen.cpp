#include "cuda/ssd_dampen.h"

#include "common/dispatcher.h"
#include "common/tensor_lists.h"
#include "cuda/bindings.h"
#include "ops/ssd_dampen.h"

namespace unlearnx::cuda {
namespace {

Tensor ssd_dampen_(const TensorList& params, const TensorList& importance_full, const TensorList& importance_forget,
                   double alpha, double lam, double exponent, double bound) {
  check_ssd_dampen(params, importance_full, importance_forget, alpha, lam, exponent, bound);
  const DeviceGuard guard(params[0]);
  const cudaStream_t stream = guard.stream();
  const Written p(params);
  const auto counts = zeros({static_cast<int64_t>(params.size())}, Like(params[0], kLong));
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

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("ssd_dampen_", TORCH_BOX(&ssd_dampen_));
}

}  // namespace unlearnx::cuda
