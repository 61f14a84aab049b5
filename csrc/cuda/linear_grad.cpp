#include "ops/linear_grad.h"

#include <torch/library.h>

#include "cuda/operands.h"
#include "ops/full_precision.h"

namespace unlearnx::cuda {
namespace {

at::Tensor linear_grad_diff(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                            const OptionalTensor& dy_new, const OptionalTensor& weight, c10::string_view reduction) {
  constexpr auto op = "linear_grad_diff";
  const FullPrecision full_precision;
  const auto problem = check_linear_grad(op, x, dy, x_new, dy_new, weight);
  if (!keeps_samples(op, reduction)) return linear_grad_sum(problem).to(x.scalar_type());
  return TileProducts(problem).rows();
}

at::Tensor linear_grad_sq(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new, const OptionalTensor& weight) {
  const FullPrecision full_precision;
  const auto problem = check_linear_grad("linear_grad_sq", x, dy, x_new, dy_new, weight);
  if (problem.outer()) {
    auto squares = with_squared_outputs(problem);
    squares.x = squares.x.square();
    return linear_grad_sum(squares);
  }
  return TileProducts(problem).sum(/*squared=*/true);
}

at::Tensor linear_grad_sqnorm(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                              const OptionalTensor& dy_new) {
  const FullPrecision full_precision;
  const auto problem = check_linear_grad("linear_grad_sqnorm", x, dy, x_new, dy_new, {});
  if (problem.outer()) return linear_grad_outer_sqnorm(problem);
  return TileProducts(problem).norms();
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("linear_grad_diff", &linear_grad_diff);
  m.impl("linear_grad_sq", &linear_grad_sq);
  m.impl("linear_grad_sqnorm", &linear_grad_sqnorm);
}

}  // namespace unlearnx::cuda
