#include "ops/linear_grad.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <algorithm>

#include "common/checks.h"
#include "ops/full_precision.h"

namespace unlearnx {
namespace {

void check_pair(const char* op, const at::Tensor& x, const at::Tensor& dy) {
  check_dtypes(op, "x", x, "dy", dy);
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": x has shape ", x.sizes(), ", expected (N, ..., I)");
  TORCH_CHECK_VALUE(x.dim() == dy.dim() && x.sizes().slice(0, x.dim() - 1) == dy.sizes().slice(0, x.dim() - 1), op,
                    ": dy has shape ", dy.sizes(), ", expected (N, ..., O) with the leading sizes of x, ", x.sizes());
}

/// <d_i, v> = sum_t dy_t . (v x_t): one product that all samples share.
at::Tensor linear_grad_dot(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                           const OptionalTensor& dy_new, const at::Tensor& v) {
  constexpr auto op = "linear_grad_dot";
  const FullPrecision full_precision;
  const auto problem = check_linear_grad(op, x, dy, x_new, dy_new, {});
  check_direction(op, "v", v, dy, {problem.outputs, problem.inputs});
  const auto direction = v.to(problem.compute_type()).t();
  const auto dot = [&](const at::Tensor& x_rows, const at::Tensor& dy_rows) {
    const auto along = at::mm(x_rows.to(problem.compute_type()), direction).mul_(dy_rows);
    return along.view({problem.samples, problem.positions * problem.outputs}).sum(1);
  };
  const auto old = dot(problem.x, problem.dy);
  return problem.paired() ? dot(problem.x_new, problem.dy_new).sub_(old) : old;
}

}  // namespace

LinearGrad check_linear_grad(const char* op, const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, const OptionalTensor& weight) {
  check_pair(op, x, dy);
  check_second_pair(op, x, dy, x_new, dy_new);
  checked_product(op, "x", x.sizes().slice(1));
  checked_product(op, "dy", dy.sizes().slice(1));
  checked_product(op, "each sample's gradient", {std::max<int64_t>(x.size(0), 1), dy.size(-1), x.size(-1)});
  const int64_t n = x.size(0), positions = positions_of(x);
  const auto flat = [&](const at::Tensor& t) { return t.contiguous().view({n * positions, t.size(-1)}); };
  LinearGrad problem{n, positions, dy.size(-1), x.size(-1), flat(x), flat(dy), {}, {}, checked_weight(op, weight, dy)};
  if (x_new.has_value()) {
    problem.x_new = flat(*x_new);
    problem.dy_new = flat(*dy_new);
  }
  return problem;
}

LinearGrad LinearGrad::with_weights_applied() const {
  LinearGrad result = *this;
  const auto weighted = [&](const at::Tensor& rows) {
    const auto wide = rows.to(compute_type());
    if (!weight.defined()) return wide;
    return wide.view({samples, positions, outputs}).mul(weight.view({-1, 1, 1})).view_as(rows);
  };
  result.x = x.to(compute_type());
  result.dy = weighted(dy);
  if (paired()) {
    result.x_new = x_new.to(compute_type());
    result.dy_new = weighted(dy_new);
  }
  result.weight.reset();
  return result;
}

LinearGrad with_squared_outputs(const LinearGrad& problem) {
  LinearGrad result = problem;
  result.x = problem.x.to(problem.compute_type());
  result.dy = problem.dy.to(problem.compute_type()).square();
  return result;
}

at::Tensor linear_grad_sum(const LinearGrad& problem) {
  const auto p = problem.with_weights_applied();
  if (!p.paired()) return at::mm(p.dy.t(), p.x);
  return at::addmm(at::mm(p.dy_new.t(), p.x_new), p.dy.t(), p.x, 1, -1);
}

at::Tensor linear_grad_outer_sqnorm(const LinearGrad& problem) {
  const auto squared = [&](const at::Tensor& t) { return t.to(problem.compute_type()).square().sum(1); };
  return squared(problem.x).mul_(squared(problem.dy));
}

}  // namespace unlearnx

TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  // weight is not keyword-only: torch.library.register_autograd does not take such tensors.
  m.def(
      "linear_grad_diff(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, Tensor? weight=None, "
      "str reduction=\"sum\") -> Tensor");
  m.def("linear_grad_sq(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, Tensor? weight=None) -> Tensor");
  m.def("linear_grad_sqnorm(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None) -> Tensor");
  m.def("linear_grad_dot(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, *, Tensor v) -> Tensor");
}

TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("linear_grad_dot", &unlearnx::linear_grad_dot);
}
