#include "ops/linear_grad.h"

#include "common/dispatcher.h"
#include "cuda/operands.h"
#include "ops/full_precision.h"

namespace unlearnx::cuda {
namespace {

/// The squared norm of an outer product is that of one factor times that of the other.
Tensor outer_norms(const LinearGrad& problem) {
  const auto squared = [&](const Tensor& t) { return t.to(problem.compute_type()).square().sum({1}); };
  return squared(problem.x).mul_(squared(problem.dy));
}

Tensor linear_grad_diff(const Tensor& x, const Tensor& dy, const OptionalTensor& x_new, const OptionalTensor& dy_new,
                        const OptionalTensor& weight, const std::string& reduction) {
  constexpr auto op = "linear_grad_diff";
  const FullPrecision full_precision(x);
  const auto problem = check_linear_grad(op, x, dy, x_new, dy_new, weight);
  if (!keeps_samples(op, reduction)) return linear_grad_sum(problem).to(x.scalar_type());
  return TileProducts(problem).rows();
}

Tensor linear_grad_sq(const Tensor& x, const Tensor& dy, const OptionalTensor& x_new, const OptionalTensor& dy_new,
                      const OptionalTensor& weight) {
  const FullPrecision full_precision(x);
  const auto problem = check_linear_grad("linear_grad_sq", x, dy, x_new, dy_new, weight);
  if (problem.outer()) {
    auto squares = with_squared_outputs(problem);
    squares.x = squares.x.square();
    return linear_grad_sum(squares);
  }
  return TileProducts(problem).sum(/*squared=*/true);
}

Tensor linear_grad_sqnorm(const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new) {
  const FullPrecision full_precision(x);
  const auto problem = check_linear_grad("linear_grad_sqnorm", x, dy, x_new, dy_new, {});
  if (problem.outer()) return outer_norms(problem);
  return TileProducts(problem).norms();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("linear_grad_diff", TORCH_BOX(&linear_grad_diff));
  m.impl("linear_grad_sq", TORCH_BOX(&linear_grad_sq));
  m.impl("linear_grad_sqnorm", TORCH_BOX(&linear_grad_sqnorm));
}

}  // namespace unlearnx::cuda
