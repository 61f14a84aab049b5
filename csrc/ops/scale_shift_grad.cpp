#include "ops/scale_shift_grad.h"

#include "common/checks.h"
#include "common/dispatcher.h"
#include "ops/full_precision.h"

namespace unlearnx {
namespace {

/// Before anything is done with the tensors, be it a conversion.
void check_pairs(const char* op, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                 const OptionalTensor& dy_new) {
  check_dtypes(op, "x", x, "dy", dy);
  check_same_shape(op, "dy", dy, "x", x);
  check_second_pair(op, x, dy, x_new, dy_new);
}

ScaleShiftGrad check_scale_shift_grad(const Tensor& x, const Tensor& dy, const OptionalTensor& mean,
                                      const OptionalTensor& rstd, int64_t dim) {
  constexpr auto op = "scale_shift_grad";
  UX_CHECK_VALUE(x.dim() >= 2, op, ": x has shape ", x.sizes(), ", expected (N, ..., C, ...)");
  const int64_t channel_dim = checked_index(op, "dim", dim, x.dim());
  UX_CHECK_VALUE(channel_dim != 0, op, ": dim is ", dim, ", expected the channels' dimension, not the samples'");
  const int64_t channels = x.size(channel_dim);
  UX_CHECK_VALUE(mean.has_value() == rstd.has_value(), op, ": mean and rstd come together, got only ",
                 mean.has_value() ? "mean" : "rstd");
  const auto statistic = [&](const char* name, const OptionalTensor& t) {
    if (!t.has_value()) return Tensor();
    check_direction(op, name, *t, dy, {channels});
    return t->to(compute_type(dy)).contiguous();
  };
  ScaleShiftGrad problem{x.size(0), 1, channels, 1, {}, {}, statistic("mean", mean), statistic("rstd", rstd)};
  // Images may come channels-last: then the channels are the fastest in memory and no copy is made.
  const bool moves = channel_dim == 1 && x.dim() == 4 && x.is_channels_last();
  problem.x = moves ? x.channels_last() : x.contiguous();
  problem.dy = moves ? dy.channels_last() : dy.contiguous();
  for (int64_t d = 1; d < x.dim(); ++d) {
    if (d == channel_dim) continue;
    (d < channel_dim || moves ? problem.outer : problem.inner) *= x.size(d);
  }
  return problem;
}

Tensor rows_of(ScaleShiftRows kernel, const ScaleShiftGrad& problem) {
  const auto rows = empty({2, problem.samples, problem.channels}, Like(problem.dy, problem.compute_type()));
  kernel(problem, rows);
  return rows;
}

/// Every d_i of the scale (first) and of the shift, in the compute type: (2, samples, channels).
Tensor each_difference(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                       const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                       int64_t dim) {
  const auto rows = rows_of(kernel, check_scale_shift_grad(x, dy, mean, rstd, dim));
  if (!x_new.has_value()) return rows;
  return rows_of(kernel, check_scale_shift_grad(*x_new, *dy_new, mean, rstd, dim)).sub(rows);
}

}  // namespace

Pair scale_shift_grad_diff(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                           const OptionalTensor& dy_new, const OptionalTensor& weight, const OptionalTensor& mean,
                           const OptionalTensor& rstd, int64_t dim, const std::string& reduction) {
  const bool keep = keeps_samples("scale_shift_grad_diff", reduction);
  check_pairs("scale_shift_grad_diff", x, dy, x_new, dy_new);
  const auto w = checked_weight("scale_shift_grad_diff", weight, dy);
  const auto rows = each_difference(kernel, x, dy, x_new, dy_new, mean, rstd, dim);
  if (w.defined()) rows.mul_(w.unsqueeze(1));
  const auto result = (keep ? rows : rows.sum({1})).to(dy.scalar_type());
  return {result.select(0, 0).clone(), result.select(0, 1).clone()};
}

Pair scale_shift_grad_sq(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                         const OptionalTensor& dy_new, const OptionalTensor& weight, const OptionalTensor& mean,
                         const OptionalTensor& rstd, int64_t dim) {
  check_pairs("scale_shift_grad_sq", x, dy, x_new, dy_new);
  const auto w = checked_weight("scale_shift_grad_sq", weight, dy);
  const auto squares = each_difference(kernel, x, dy, x_new, dy_new, mean, rstd, dim).square();
  std::optional<FullPrecision> full_precision;
  if (w.defined()) full_precision.emplace(x);
  const auto total = [&](const Tensor& rows) { return w.defined() ? mv(rows.t(), w) : rows.sum({0}); };
  return {total(squares.select(0, 0)), total(squares.select(0, 1))};
}

Pair scale_shift_grad_sqnorm(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                             int64_t dim) {
  check_pairs("scale_shift_grad_sqnorm", x, dy, x_new, dy_new);
  const auto norms = each_difference(kernel, x, dy, x_new, dy_new, mean, rstd, dim).square().sum({2});
  return {norms.select(0, 0).clone(), norms.select(0, 1).clone()};
}

Pair scale_shift_grad_dot(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                          int64_t dim, const Tensor& v_scale, const Tensor& v_shift) {
  const FullPrecision full_precision(x);
  check_pairs("scale_shift_grad_dot", x, dy, x_new, dy_new);
  const auto rows = each_difference(kernel, x, dy, x_new, dy_new, mean, rstd, dim);
  const int64_t channels = rows.size(2);
  check_direction("scale_shift_grad_dot", "v_scale", v_scale, dy, {channels});
  check_direction("scale_shift_grad_dot", "v_shift", v_shift, dy, {channels});
  return {mv(rows.select(0, 0), v_scale.to(rows.scalar_type())), mv(rows.select(0, 1), v_shift.to(rows.scalar_type()))};
}

}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def(
      "scale_shift_grad_diff(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, *, Tensor? weight=None, "
      "Tensor? mean=None, Tensor? rstd=None, int dim=-1, str reduction=\"sum\") -> (Tensor, Tensor)");
  m.def(
      "scale_shift_grad_sq(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, *, Tensor? weight=None, "
      "Tensor? mean=None, Tensor? rstd=None, int dim=-1) -> (Tensor, Tensor)");
  m.def(
      "scale_shift_grad_sqnorm(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, *, Tensor? mean=None, "
      "Tensor? rstd=None, int dim=-1) -> (Tensor, Tensor)");
  m.def(
      "scale_shift_grad_dot(Tensor x, Tensor dy, Tensor? x_new=None, Tensor? dy_new=None, *, Tensor? mean=None, "
      "Tensor? rstd=None, int dim=-1, Tensor v_scale, Tensor v_shift) -> (Tensor, Tensor)");
}
