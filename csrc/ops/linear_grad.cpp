#include "ops/linear_grad.h"

#include <algorithm>

#include "common/checks.h"
#include "common/dispatcher.h"
#include "ops/full_precision.h"

namespace unlearnx {
namespace {

void check_pair(const char* op, const Tensor& x, const Tensor& dy) {
  check_dtypes(op, "x", x, "dy", dy);
  UX_CHECK_VALUE(x.dim() >= 2, op, ": x has shape ", x.sizes(), ", expected (N, ..., I)");
  UX_CHECK_VALUE(x.dim() == dy.dim() && x.sizes().first(x.dim() - 1) == dy.sizes().first(x.dim() - 1), op,
                 ": dy has shape ", dy.sizes(), ", expected (N, ..., O) with the leading sizes of x, ", x.sizes());
}

/// <d_i, v> = sum_t dy_t . (v x_t): one product that all samples share.
Tensor linear_grad_dot(const Tensor& x, const Tensor& dy, const OptionalTensor& x_new, const OptionalTensor& dy_new,
                       const Tensor& v) {
  constexpr auto op = "linear_grad_dot";
  const FullPrecision full_precision(x);
  const auto problem = check_linear_grad(op, x, dy, x_new, dy_new, {});
  check_direction(op, "v", v, dy, {problem.outputs, problem.inputs});
  const auto direction = v.to(problem.compute_type()).t();
  const auto dot = [&](const Tensor& x_rows, const Tensor& dy_rows) {
    const auto along = mm(x_rows.to(problem.compute_type()), direction).mul_(dy_rows);
    return along.view({problem.samples, problem.positions * problem.outputs}).sum({1});
  };
  const auto old = dot(problem.x, problem.dy);
  return problem.paired() ? dot(problem.x_new, problem.dy_new).sub(old) : old;
}

}  // namespace

LinearGrad check_linear_grad(const char* op, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, const OptionalTensor& weight) {
  check_pair(op, x, dy);
  check_second_pair(op, x, dy, x_new, dy_new);
  checked_product(op, "x", x.sizes().from(1));
  checked_product(op, "dy", dy.sizes().from(1));
  checked_product(op, "each sample's gradient", {std::max<int64_t>(x.size(0), 1), dy.size(-1), x.size(-1)});
  const int64_t n = x.size(0), positions = positions_of(x);
  const auto flat = [&](const Tensor& t) { return t.contiguous().view({n * positions, t.size(-1)}); };
  LinearGrad problem{n, positions, dy.size(-1), x.size(-1), flat(x), flat(dy), {}, {}, checked_weight(op, weight, dy)};
  if (x_new.has_value()) {
    problem.x_new = flat(*x_new);
    problem.dy_new = flat(*dy_new);
  }
  return problem;
}

LinearGrad LinearGrad::with_weights_applied() const {
  LinearGrad result = *this;
  const auto weighted = [&](const Tensor& rows) {
    const auto wide = rows.to(compute_type());
    if (!weight.defined()) return wide;
    return wide.view({samples, positions, outputs}).mul(weight.view({samples, 1, 1})).view(rows.sizes());
  };
  result.x = x.to(compute_type());
  result.dy = weighted(dy);
  if (paired()) {
    result.x_new = x_new.to(compute_type());
    result.dy_new = weighted(dy_new);
  }
  result.weight = {};
  return result;
}

LinearGrad with_squared_outputs(const LinearGrad& problem) {
  LinearGrad result = problem;
  result.x = problem.x.to(problem.compute_type());
  result.dy = problem.dy.to(problem.compute_type()).square();
  return result;
}

Tensor linear_grad_sum(const LinearGrad& problem) {
  const auto p = problem.with_weights_applied();
  if (!p.paired()) return mm(p.dy.t(), p.x);
  const auto sum = mm(p.dy_new.t(), p.x_new);
  addmm_out(sum, p.dy.t(), p.x, 1, -1);
  return sum;
}

}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  // weight is not keyword-only: torch.library.register_autograd does not take such tensors.
  m.def(
      "linear_grad_diff(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, Tensor? weight=None, "
      "str reduction=\"sum\") -> Tensor");
  m.def("linear_grad_sq(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, Tensor? weight=None) -> Tensor");
  m.def("linear_grad_sqnorm(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None) -> Tensor");
  m.def("linear_grad_dot(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, *, Tensor v) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("linear_grad_dot", TORCH_BOX(&unlearnx::linear_grad_dot));
}
