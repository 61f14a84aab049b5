#include "ops/linear_grad.h"

#include "common/clones.h"
#include "common/dispatcher.h"
#include "common/parallel.h"
#include "cpu/inner_product.h"
#include "cpu/operands.h"

namespace unlearnx::cpu {
namespace {

// One row of a rank-one difference: out = a_new * x_new - a * x.
template <typename T>
UX_INLINE void row_body(T* out, const T* x, const T* x_new, int64_t n, T a, T a_new) {
  for (int64_t k = 0; k < n; ++k) out[k] = a_new * x_new[k] - a * x[k];
}
template <typename T>
UX_INLINE void row_body(T* out, const T* x, int64_t n, T a) {
  for (int64_t k = 0; k < n; ++k) out[k] = a * x[k];
}
UX_CLONES void row(float* out, const float* x, int64_t n, float a) {
  row_body(out, x, n, a);
}
UX_CLONES void row(double* out, const double* x, int64_t n, double a) {
  row_body(out, x, n, a);
}
UX_CLONES void row(float* out, const float* x, const float* x_new, int64_t n, float a, float a_new) {
  row_body(out, x, x_new, n, a, a_new);
}
UX_CLONES void row(double* out, const double* x, const double* x_new, int64_t n, double a, double a_new) {
  row_body(out, x, x_new, n, a, a_new);
}

/// Positions == 1: every d_i is an outer product (or a difference of two), written in one pass.
template <typename T>
Tensor outer_products(const LinearGrad& problem) {
  const auto [samples, positions, outputs, inputs] =
      std::tuple(problem.samples, problem.positions, problem.outputs, problem.inputs);
  const auto typed = [](const Tensor& t) { return t.defined() ? t.to(type_of<T>) : t; };
  const Tensor x = typed(problem.x), dy = typed(problem.dy), weight = problem.weight;
  const Tensor x_new = typed(problem.x_new), dy_new = typed(problem.dy_new);
  Tensor result = empty({samples, outputs, inputs}, Like(problem.x, type_of<T>));
  const T *px = x.const_data_ptr<T>(), *pdy = dy.const_data_ptr<T>();
  const T* pw = weight.defined() ? weight.const_data_ptr<T>() : nullptr;
  const T* px_new = problem.paired() ? x_new.const_data_ptr<T>() : nullptr;
  const T* pdy_new = problem.paired() ? dy_new.const_data_ptr<T>() : nullptr;
  T* out = result.mutable_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(inputs, 1));
  parallel_for(0, samples * outputs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r / outputs;
      const T w = pw ? pw[i] : T(1);
      const T* x_row = px + i * inputs;
      if (px_new)
        row(out + r * inputs, x_row, px_new + i * inputs, inputs, w * pdy[r], w * pdy_new[r]);
      else
        row(out + r * inputs, x_row, inputs, w * pdy[r]);
    }
  });
  return result;
}

constexpr int64_t kNarrow = 4;

// For one output: sums += a[0] x[0] + ... + a[3] x[3], or of x squared, over rows `stride` apart.
template <typename T>
UX_INLINE void four_rows_body(const T* x, int64_t stride, const T* a, int64_t n, bool squared, T* sums) {
  const T *x0 = x, *x1 = x + stride, *x2 = x + 2 * stride, *x3 = x + 3 * stride;
  if (squared)
    for (int64_t k = 0; k < n; ++k)
      sums[k] += a[0] * x0[k] * x0[k] + a[1] * x1[k] * x1[k] + a[2] * x2[k] * x2[k] + a[3] * x3[k] * x3[k];
  else
    for (int64_t k = 0; k < n; ++k) sums[k] += a[0] * x0[k] + a[1] * x1[k] + a[2] * x2[k] + a[3] * x3[k];
}
UX_CLONES void four_rows(const float* x, int64_t stride, const float* a, int64_t n, bool squared, float* sums) {
  four_rows_body(x, stride, a, n, squared, sums);
}
UX_CLONES void four_rows(const double* x, int64_t stride, const double* a, int64_t n, bool squared, double* sums) {
  four_rows_body(x, stride, a, n, squared, sums);
}

/// The same for one row.
template <typename T>
UX_INLINE void one_row_body(const T* x, T a, int64_t n, bool squared, T* sums) {
  if (squared)
    for (int64_t k = 0; k < n; ++k) sums[k] += a * x[k] * x[k];
  else
    for (int64_t k = 0; k < n; ++k) sums[k] += a * x[k];
}
UX_CLONES void one_row(const float* x, float a, int64_t n, bool squared, float* sums) {
  one_row_body(x, a, n, squared, sums);
}
UX_CLONES void one_row(const double* x, double a, int64_t n, bool squared, double* sums) {
  one_row_body(x, a, n, squared, sums);
}

/// sums (outputs, inputs) += factor * dy^T x for rows [begin, end): for few outputs, reading x once is all the work.
template <typename T>
void add_narrow(const T* x, const T* dy, int64_t begin, int64_t end, int64_t outputs, int64_t inputs, T factor,
                bool squared, T* sums) {
  int64_t r = begin;
  for (; r + 4 <= end; r += 4)
    for (int64_t o = 0; o < outputs; ++o) {
      T a[4];
      for (int64_t j = 0; j < 4; ++j) a[j] = factor * dy[(r + j) * outputs + o];
      four_rows(x + r * inputs, inputs, a, inputs, squared, sums + o * inputs);
    }
  for (; r < end; ++r)
    for (int64_t o = 0; o < outputs; ++o)
      one_row(x + r * inputs, factor * dy[r * outputs + o], inputs, squared, sums + o * inputs);
}

template <typename T>
void sum_narrow(const Operands<T>& o, T* result) {
  constexpr int64_t kPieces = 32;  // fixed, so that sums do not depend on the number of threads
  const int64_t size = o.outputs * o.columns, piece = std::max<int64_t>(256, ceil_div(o.rows, kPieces));
  const int64_t pieces = ceil_div(o.rows, piece);
  const std::unique_ptr<T[]> partial(new T[pieces * size]());
  parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int pair = 0; pair < o.pairs; ++pair)
        add_narrow(o.x[pair], o.dy[pair], p * piece, std::min(o.rows, (p + 1) * piece), o.outputs, o.columns,
                   pair + 1 < o.pairs ? T(-1) : T(1), o.squared, partial.get() + p * size);
  });
  std::fill_n(result, size, T(0));
  for (int64_t p = 0; p < pieces; ++p)
    for (int64_t k = 0; k < size; ++k) result[k] += partial[p * size + k];
}

/// sum_i w_i d_i: no sample is looked at alone, so rows are cut into long pieces instead. (A BLAS would be as fast, but
/// its sums depend on the number of threads.) With squared inputs, sum_i w_i dy_i^T x_i^2.
Tensor sum_of_rows(const LinearGrad& problem, bool squared = false) {
  constexpr int64_t kPiece = 1024;
  auto p = problem.with_weights_applied();
  const auto result = empty({p.outputs, p.inputs}, Like(p.x));
  const auto sum = [&](auto operands) {
    using T = std::decay_t<decltype(*operands.x[0])>;
    operands.squared = squared;
    if (p.outputs <= kNarrow) return sum_narrow(operands, result.template mutable_data_ptr<T>());
    operands.positions = kPiece;
    operands.samples = ceil_div(operands.rows, kPiece);
    operands.x_sample = kPiece * p.inputs;
    sum_differences(operands, static_cast<const T*>(nullptr), result.template mutable_data_ptr<T>());
  };
  p.x.scalar_type() == kDouble ? sum(operands_of<double>(p)) : sum(operands_of<float>(p));
  return result;
}

Tensor linear_grad_diff(const Tensor& x, const Tensor& dy, const OptionalTensor& x_new, const OptionalTensor& dy_new,
                        const OptionalTensor& weight, const std::string& reduction) {
  constexpr auto op = "linear_grad_diff";
  auto problem = check_linear_grad(op, x, dy, x_new, dy_new, weight);
  if (!keeps_samples(op, reduction)) return sum_of_rows(problem).to(x.scalar_type());
  if (problem.positions == 1) {
    const bool wide = problem.compute_type() == kDouble;
    return (wide ? outer_products<double>(problem) : outer_products<float>(problem)).to(x.scalar_type());
  }
  const auto rows = empty({problem.samples, problem.outputs, problem.inputs}, Like(x, problem.compute_type()));
  with_operands(problem, [&](const auto& operands, auto* w, auto type) {
    each_difference(operands, w, rows.mutable_data_ptr<decltype(type)>());
  });
  return rows.to(x.scalar_type());
}

Tensor linear_grad_sq(const Tensor& x, const Tensor& dy, const OptionalTensor& x_new, const OptionalTensor& dy_new,
                      const OptionalTensor& weight) {
  auto problem = check_linear_grad("linear_grad_sq", x, dy, x_new, dy_new, weight);
  if (problem.outer()) return sum_of_rows(with_squared_outputs(problem), true);
  const auto result = empty({problem.outputs, problem.inputs}, Like(x, problem.compute_type()));
  with_operands(problem, [&](const auto& operands, auto* w, auto type) {
    sum_squares(operands, w, result.mutable_data_ptr<decltype(type)>());
  });
  return result;
}

/// The squared norm of an outer product is that of one factor times that of the other.
template <typename T>
Tensor outer_norms(const LinearGrad& p) {
  const Tensor x = p.x.to(type_of<T>), dy = p.dy.to(type_of<T>);
  const Tensor norms = empty({p.samples}, Like(x));
  const T *px = x.const_data_ptr<T>(), *pdy = dy.const_data_ptr<T>();
  T* const out = norms.mutable_data_ptr<T>();
  const auto squared = [](const T* row, int64_t n) { return inner_product(row, row, n); };
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(p.inputs + p.outputs, 1));
  parallel_for(0, p.samples, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      out[i] = squared(px + i * p.inputs, p.inputs) * squared(pdy + i * p.outputs, p.outputs);
  });
  return norms;
}

Tensor linear_grad_sqnorm(const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new) {
  auto problem = check_linear_grad("linear_grad_sqnorm", x, dy, x_new, dy_new, {});
  if (problem.outer())
    return problem.compute_type() == kDouble ? outer_norms<double>(problem) : outer_norms<float>(problem);
  const auto norms = empty({problem.samples}, Like(x, problem.compute_type()));
  with_operands(problem, [&](const auto& operands, auto*, auto type) {
    squared_norms(operands, norms.mutable_data_ptr<decltype(type)>());
  });
  return norms;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("linear_grad_diff", TORCH_BOX(&linear_grad_diff));
  m.impl("linear_grad_sq", TORCH_BOX(&linear_grad_sq));
  m.impl("linear_grad_sqnorm", TORCH_BOX(&linear_grad_sqnorm));
}

}  // namespace unlearnx::cpu
