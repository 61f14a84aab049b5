#include "ops/linear_grad.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "common/checks.h"

namespace unlearnx {
namespace {

void check_pair(const char* op, const char* x_name, const at::Tensor& x, const char* dy_name, const at::Tensor& dy) {
  check_floating(op, x_name, x);
  TORCH_CHECK_TYPE(dy.scalar_type() == x.scalar_type(), op, ": ", dy_name, " has dtype ", dy.scalar_type(), ", but ",
                   x_name, " has ", x.scalar_type());
  check_same_device(op, dy_name, dy, x_name, x);
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": ", x_name, " has shape ", x.sizes(), ", expected (N, ..., I)");
  TORCH_CHECK_VALUE(x.dim() == dy.dim() && x.sizes().slice(0, x.dim() - 1) == dy.sizes().slice(0, x.dim() - 1), op,
                    ": ", dy_name, " has shape ", dy.sizes(), ", expected (N, ..., O) with the leading sizes of ",
                    x_name, ", ", x.sizes());
}

}  // namespace

LinearGrad check_linear_grad(const char* op, const at::Tensor& x, const at::Tensor& dy,
                             const std::optional<at::Tensor>& x_new, const std::optional<at::Tensor>& dy_new,
                             const std::optional<at::Tensor>& weight) {
  check_pair(op, "x", x, "dy", dy);
  TORCH_CHECK_VALUE(x_new.has_value() == dy_new.has_value(), op, ": x_new and dy_new come together, got only ",
                    x_new.has_value() ? "x_new" : "dy_new");
  int64_t positions = 1;
  for (int64_t d = 1; d + 1 < x.dim(); ++d) positions *= x.size(d);
  const int64_t n = x.size(0);
  const auto flat = [&](const at::Tensor& t) { return t.contiguous().view({n * positions, t.size(-1)}); };
  LinearGrad problem{n, positions, dy.size(-1), x.size(-1), flat(x), flat(dy), {}, {}, {}};
  if (x_new.has_value()) {
    check_pair(op, "x_new", *x_new, "dy_new", *dy_new);
    check_same_shape(op, "x_new", *x_new, "x", x);
    check_same_shape(op, "dy_new", *dy_new, "dy", dy);
    check_same_device(op, "x_new", *x_new, "x", x);
    TORCH_CHECK_TYPE(x_new->scalar_type() == x.scalar_type(), op, ": x_new has dtype ", x_new->scalar_type(),
                     ", but x has ", x.scalar_type());
    problem.x_new = flat(*x_new);
    problem.dy_new = flat(*dy_new);
  }
  if (weight.has_value()) {
    check_floating(op, "weight", *weight);
    check_same_device(op, "weight", *weight, "x", x);
    TORCH_CHECK_VALUE(weight->dim() == 1 && weight->size(0) == n, op, ": weight has shape ", weight->sizes(),
                      ", expected (N,) = [", n, "]");
    problem.weight = weight->to(problem.compute_type()).contiguous();
  }
  return problem;
}

bool keeps_samples(const char* op, c10::string_view reduction) {
  TORCH_CHECK_VALUE(reduction == "sum" || reduction == "none", op, ": reduction is '", reduction,
                    "', expected 'sum' or 'none'");
  return reduction == "none";
}

at::Tensor LinearGrad::batches(const at::Tensor& rows) const {
  return rows.view({samples, positions, rows.size(-1)}).to(compute_type());
}

at::Tensor LinearGrad::weighted(const at::Tensor& dy_rows) const {
  const auto dy = batches(dy_rows);
  return weight.defined() ? dy.mul(weight.view({-1, 1, 1})) : dy;
}

at::Tensor linear_grad_sum(const LinearGrad& problem) {
  const auto type = problem.x.scalar_type(), compute = problem.compute_type();
  const auto transposed = [&](const at::Tensor& dy) { return problem.weighted(dy).view(dy.sizes()).t(); };
  if (!problem.paired()) return at::mm(transposed(problem.dy), problem.x.to(compute)).to(type);
  const auto sum = at::mm(transposed(problem.dy_new), problem.x_new.to(compute));
  return at::addmm(sum, transposed(problem.dy), problem.x.to(compute), 1, -1).to(type);
}

}  // namespace unlearnx

TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  // weight is not keyword-only: torch.library.register_autograd does not take such tensors.
  m.def(
      "linear_grad_diff(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, Tensor? weight=None, "
      "str reduction=\"sum\") -> Tensor");
}
