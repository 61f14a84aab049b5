#include "ops/lissa_step.h"

#include <cmath>
#include <numeric>

#include "common/clones.h"
#include "common/dispatcher.h"
#include "common/tensor_lists.h"
#include "cpu/chunks.h"
#include "cpu/convert.h"
#include "cpu/lissa_update.h"

namespace unlearnx::cpu {
namespace {

// Sixteen running sums: fixed in number, so that every CPU level adds in the same order.
constexpr int kLanes = 16;

template <typename T>
UX_INLINE double step_body(T* h, const T* v, const T* hv, int64_t n, T keep, T inverse_scale) {
  T sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t j = i + lane;
      const T next = v[j] + keep * h[j] - hv[j] * inverse_scale;
      sums[lane] += std::abs(next - h[j]);
      h[j] = next;
    }
  double total = 0;
  for (; i < n; ++i) {
    const T next = v[i] + keep * h[i] - hv[i] * inverse_scale;
    total += std::abs(next - h[i]);
    h[i] = next;
  }
  for (int lane = 0; lane < kLanes; ++lane) total += sums[lane];
  return total;
}

UX_CLONES double step(float* h, const float* v, const float* hv, int64_t n, float keep, float inverse_scale) {
  return step_body(h, v, hv, n, keep, inverse_scale);
}
UX_CLONES double step(double* h, const double* v, const double* hv, int64_t n, double keep, double inverse_scale) {
  return step_body(h, v, hv, n, keep, inverse_scale);
}

template <typename T>
double step_chunk(const Chunk& chunk, const Tensor& h, const Tensor& v, const Tensor& hv, double damping,
                  double scale) {
  Operand<T> state(h.scalar_type(), h.data_ptr());
  Operand<T> constant(v.scalar_type(), v.const_data_ptr());
  Operand<T> product(hv.scalar_type(), hv.const_data_ptr());
  double change = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kRun) {
    const int64_t n = std::min(kRun, chunk.end - begin);
    T* values = state.open(begin, n);
    change += lissa_update(values, constant.read(begin, n), product.read(begin, n), n, T(1 - damping), T(1 / scale));
    state.write(begin, n);
  }
  return change;
}

Tensor lissa_step_(const TensorList& h, const TensorList& v, const TensorList& hv, double damping, double scale) {
  check_lissa_step(h, v, hv, damping, scale);
  const Written state(h);
  const auto constant = state.align(v), product = state.align(hv);
  const auto changes = map_chunks<double>(chunks_of(h), [&](const Chunk& chunk) {
    const auto t = chunk.tensor;
    const bool wide = h[t].scalar_type() == kDouble || v[t].scalar_type() == kDouble || hv[t].scalar_type() == kDouble;
    return wide ? step_chunk<double>(chunk, state[t], constant[t], product[t], damping, scale)
                : step_chunk<float>(chunk, state[t], constant[t], product[t], damping, scale);
  });
  state.finish();
  const double change = std::accumulate(changes.begin(), changes.end(), 0.0);
  return full({}, change, Like(kDouble)).to(lissa_norm_type(h));  // full refuses what float32 cannot hold
}

}  // namespace

double lissa_update(float* h, const float* v, const float* hv, int64_t n, float keep, float inverse_scale) {
  return step(h, v, hv, n, keep, inverse_scale);
}
double lissa_update(double* h, const double* v, const double* hv, int64_t n, double keep, double inverse_scale) {
  return step(h, v, hv, n, keep, inverse_scale);
}

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("lissa_step_", TORCH_BOX(&lissa_step_));
}

}  // namespace unlearnx::cpu
