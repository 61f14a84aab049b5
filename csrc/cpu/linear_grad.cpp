#include "ops/linear_grad.h"

#include <ATen/Parallel.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "common/clones.h"
#include "cpu/convert.h"

namespace unlearnx::cpu {
namespace {

// One row of a rank-one difference: out = a_new * x_new - a * x.
template <typename T>
UX_INLINE void row_body(T* out, const T* x, const T* x_new, int64_t n, T a, T a_new) {
  for (int64_t k = 0; k < n; ++k) out[k] = a_new * x_new[k] - a * x[k];
}
UX_CLONES void row(float* out, const float* x, const float* x_new, int64_t n, float a, float a_new) {
  row_body(out, x, x_new, n, a, a_new);
}
UX_CLONES void row(double* out, const double* x, const double* x_new, int64_t n, double a, double a_new) {
  row_body(out, x, x_new, n, a, a_new);
}

/// Positions == 1: every d_i is an outer product (or a difference of two), written in one pass.
template <typename T>
at::Tensor outer_products(const LinearGrad& problem) {
  const auto [samples, positions, outputs, inputs] =
      std::tuple(problem.samples, problem.positions, problem.outputs, problem.inputs);
  const auto typed = [](const at::Tensor& t) { return t.defined() ? t.to(type_of<T>) : t; };
  const at::Tensor x = typed(problem.x), dy = typed(problem.dy), weight = problem.weight;
  const at::Tensor x_new = typed(problem.x_new), dy_new = typed(problem.dy_new);
  at::Tensor result = at::empty({samples, outputs, inputs}, problem.x.options().dtype(type_of<T>));
  const T *px = x.const_data_ptr<T>(), *pdy = dy.const_data_ptr<T>();
  const T* pw = weight.defined() ? weight.const_data_ptr<T>() : nullptr;
  const T* px_new = problem.paired() ? x_new.const_data_ptr<T>() : nullptr;
  const T* pdy_new = problem.paired() ? dy_new.const_data_ptr<T>() : nullptr;
  T* out = result.mutable_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(inputs, 1));
  at::parallel_for(0, samples * outputs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r / outputs;
      const T w = pw ? pw[i] : T(1);
      const T* x_row = px + i * inputs;
      if (px_new)
        row(out + r * inputs, x_row, px_new + i * inputs, inputs, w * pdy[r], w * pdy_new[r]);
      else
        row(out + r * inputs, x_row, x_row, inputs, T(0), w * pdy[r]);
    }
  });
  return result.to(problem.x.scalar_type());
}

/// Several positions: batched products, d_i = dy_new_i^T x_new_i - dy_i^T x_i.
at::Tensor batched_products(const LinearGrad& problem) {
  const auto type = problem.x.scalar_type();
  const auto transposed = [&](const at::Tensor& dy) { return problem.weighted(dy).transpose(1, 2); };
  if (!problem.paired()) return at::bmm(transposed(problem.dy), problem.batches(problem.x)).to(type);
  const auto gradients = at::bmm(transposed(problem.dy_new), problem.batches(problem.x_new));
  return at::baddbmm(gradients, transposed(problem.dy), problem.batches(problem.x), 1, -1).to(type);
}

at::Tensor linear_grad_diff(const at::Tensor& x, const at::Tensor& dy, const std::optional<at::Tensor>& x_new,
                            const std::optional<at::Tensor>& dy_new, const std::optional<at::Tensor>& weight,
                            c10::string_view reduction) {
  constexpr auto op = "linear_grad_diff";
  const c10::impl::ExcludeDispatchKeyGuard full_precision(c10::autocast_dispatch_keyset);
  const auto problem = check_linear_grad(op, x, dy, x_new, dy_new, weight);
  if (!keeps_samples(op, reduction)) return linear_grad_sum(problem);
  if (problem.positions != 1) return batched_products(problem);
  return problem.compute_type() == at::kDouble ? outer_products<double>(problem) : outer_products<float>(problem);
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("linear_grad_diff", &linear_grad_diff);
}

}  // namespace unlearnx::cpu
