#include "ops/lstm_gates.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "common/clones.h"

namespace unlearnx::cpu {
namespace {

/// One sample: gates and da hold input, forget, cell and output gates one after the other.
template <typename T>
UX_INLINE void sample_body(int64_t size, const T* gates, const T* cell, const T* squashed, const T* dh, T* dc, T* da) {
  const T *pi = gates, *pf = gates + size, *pg = gates + 2 * size, *po = gates + 3 * size;
  T *di = da, *df = da + size, *dg = da + 2 * size, *d_o = da + 3 * size;
  for (int64_t k = 0; k < size; ++k) {
    const T i = pi[k], f = pf[k], g = pg[k], o = po[k], s = squashed[k];
    const T c = dc[k] + dh[k] * o * (1 - s * s);
    di[k] = c * g * (i - i * i);
    df[k] = c * cell[k] * (f - f * f);
    dg[k] = c * i * (1 - g * g);
    d_o[k] = dh[k] * s * (o - o * o);
    dc[k] = c * f;
  }
}
UX_CLONES void sample(int64_t size, const float* gates, const float* cell, const float* squashed, const float* dh,
                      float* __restrict__ dc, float* __restrict__ da) {
  sample_body(size, gates, cell, squashed, dh, dc, da);
}
UX_CLONES void sample(int64_t size, const double* gates, const double* cell, const double* squashed, const double* dh,
                      double* __restrict__ dc, double* __restrict__ da) {
  sample_body(size, gates, cell, squashed, dh, dc, da);
}

template <typename T>
void all_samples(const at::Tensor& gates, const at::Tensor& cell, const at::Tensor& squashed, const at::Tensor& dh,
                 const at::Tensor& dc, const at::Tensor& da) {
  const int64_t size = cell.size(1);
  const T *pg = gates.const_data_ptr<T>(), *pc = cell.const_data_ptr<T>(), *ps = squashed.const_data_ptr<T>();
  const T* ph = dh.const_data_ptr<T>();
  T *pdc = dc.mutable_data_ptr<T>(), *pda = da.mutable_data_ptr<T>();
  at::parallel_for(0, cell.size(0), std::max<int64_t>(1, 8192 / std::max<int64_t>(size, 1)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t n = begin; n < end; ++n)
                       sample(size, pg + 4 * n * size, pc + n * size, ps + n * size, ph + n * size, pdc + n * size,
                              pda + 4 * n * size);
                   });
}

void lstm_gates_backward_(const at::Tensor& gates, const at::Tensor& cell, const at::Tensor& squashed,
                          const at::Tensor& dh, const at::Tensor& dc, const at::Tensor& da) {
  check_lstm_gates(gates, cell, squashed, dh, dc, da);
  const auto type = gates.scalar_type();
  bool plain = type == at::kFloat || type == at::kDouble;
  for (const at::Tensor* t : {&gates, &cell, &squashed, &dh, &dc, &da}) plain = plain && t->is_contiguous();
  TORCH_CHECK_VALUE(plain, "lstm_gates_backward_: expected contiguous float32 or float64 tensors on the CPU, got ",
                    type);
  type == at::kDouble ? all_samples<double>(gates, cell, squashed, dh, dc, da)
                      : all_samples<float>(gates, cell, squashed, dh, dc, da);
  dc.unsafeGetTensorImpl()->bump_version();
  da.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("lstm_gates_backward_", &lstm_gates_backward_);
}

}  // namespace unlearnx::cpu
