#include "ops/ssd_dampen.h"

#include "common/clones.h"
#include "common/dispatcher.h"
#include "common/tensor_lists.h"
#include "cpu/chunks.h"
#include "cpu/convert.h"

namespace unlearnx::cpu {
namespace {

template <typename T>
struct Rule {
  T alpha, lam, exponent, bound;
};

// Selects instead of branches: the loop stays vectorised.
template <bool Power, typename T>
UX_INLINE int64_t dampen_body(T* p, const T* full, const T* forget, int64_t n, Rule<T> rule) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool selected = forget[i] > rule.alpha * full[i];
    T factor = rule.lam * full[i] / forget[i];
    if constexpr (Power) factor = std::pow(factor, rule.exponent);
    factor = factor > rule.bound ? rule.bound : factor;
    p[i] = selected ? p[i] * factor : p[i];
    count += selected;
  }
  return count;
}

UX_CLONES int64_t dampen(float* p, const float* full, const float* forget, int64_t n, Rule<float> rule) {
  return dampen_body<false>(p, full, forget, n, rule);
}
UX_CLONES int64_t dampen(double* p, const double* full, const double* forget, int64_t n, Rule<double> rule) {
  return dampen_body<false>(p, full, forget, n, rule);
}

template <typename T>
int64_t dampen_chunk(const Chunk& chunk, const Tensor& params, const Tensor& importance_full,
                     const Tensor& importance_forget, Rule<T> rule) {
  Operand<T> p(params.scalar_type(), params.data_ptr());
  Operand<T> full(importance_full.scalar_type(), importance_full.const_data_ptr());
  Operand<T> forget(importance_forget.scalar_type(), importance_forget.const_data_ptr());
  int64_t count = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kRun) {
    const int64_t n = std::min(kRun, chunk.end - begin);
    T* values = p.open(begin, n);
    const T *full_run = full.read(begin, n), *forget_run = forget.read(begin, n);
    count += rule.exponent == 1 ? dampen(values, full_run, forget_run, n, rule)
                                : dampen_body<true>(values, full_run, forget_run, n, rule);
    p.write(begin, n);
  }
  return count;
}

Tensor ssd_dampen_(const TensorList& params, const TensorList& importance_full, const TensorList& importance_forget,
                   double alpha, double lam, double exponent, double bound) {
  check_ssd_dampen(params, importance_full, importance_forget, alpha, lam, exponent, bound);
  const Written p(params);
  const auto full = p.align(importance_full), forget = p.align(importance_forget);
  const auto chunks = chunks_of(params);
  const auto counts = map_chunks<int64_t>(chunks, [&](const Chunk& chunk) {
    const auto t = chunk.tensor;
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      const Rule<T> rule{T(alpha), T(lam), T(exponent), T(bound)};
      return dampen_chunk<T>(chunk, p[t], full[t], forget[t], rule);
    };
    const bool wide =
        p[t].scalar_type() == kDouble || full[t].scalar_type() == kDouble || forget[t].scalar_type() == kDouble;
    return wide ? run(double{}) : run(float{});
  });
  p.finish();
  auto result = zeros({static_cast<int64_t>(params.size())}, Like(kLong));
  auto* totals = result.mutable_data_ptr<int64_t>();
  for (size_t c = 0; c < chunks.size(); ++c) totals[chunks[c].tensor] += counts[c];
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("ssd_dampen_", TORCH_BOX(&ssd_dampen_));
}

}  // namespace unlearnx::cpu
