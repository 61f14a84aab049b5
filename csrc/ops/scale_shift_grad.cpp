#include "ops/scale_shift_grad.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mv.h>
#include <c10/core/WrapDimMinimal.h>
#include <torch/library.h>

#include "common/checks.h"
#include "ops/full_precision.h"

namespace unlearnx {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

/// Before anything is done with the tensors, be it a conversion.
void check_pairs(const char* op, const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                 const OptionalTensor& dy_new) {
  check_dtypes(op, "x", x, "dy", dy);
  check_same_shape(op, "dy", dy, "x", x);
  check_second_pair(op, x, dy, x_new, dy_new);
}

ScaleShiftGrad check_scale_shift_grad(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& mean,
                                      const OptionalTensor& rstd, int64_t dim) {
  constexpr auto op = "scale_shift_grad";
  TORCH_CHECK_VALUE(x.dim() >= 2, op, ": x has shape ", x.sizes(), ", expected (N, ..., C, ...)");
  const int64_t channel_dim = checked_index(op, "dim", dim, x.dim());
  TORCH_CHECK_VALUE(channel_dim != 0, op, ": dim is ", dim, ", expected the channels' dimension, not the samples'");
  const int64_t channels = x.size(channel_dim);
  TORCH_CHECK_VALUE(mean.has_value() == rstd.has_value(), op, ": mean and rstd come together, got only ",
                    mean.has_value() ? "mean" : "rstd");
  const auto statistic = [&](const char* name, const OptionalTensor& t) {
    if (!t.has_value()) return at::Tensor();
    check_direction(op, name, *t, dy, {channels});
    return t->to(compute_type(dy)).contiguous();
  };
  ScaleShiftGrad problem{x.size(0), 1, channels, 1, {}, {}, statistic("mean", mean), statistic("rstd", rstd)};
  // Images may come channels-last: then the channels are the fastest in memory and no copy is made.
  const bool moves = channel_dim == 1 && x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  const auto format = moves ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  problem.x = x.contiguous(format);
  problem.dy = dy.contiguous(format);
  for (int64_t d = 1; d < x.dim(); ++d) {
    if (d == channel_dim) continue;
    (d < channel_dim || moves ? problem.outer : problem.inner) *= x.size(d);
  }
  return problem;
}

at::Tensor rows_of(ScaleShiftRows kernel, const ScaleShiftGrad& problem) {
  const auto rows =
      at::empty({2, problem.samples, problem.channels}, problem.dy.options().dtype(problem.compute_type()));
  kernel(problem, rows);
  return rows;
}

/// Every d_i of the scale and of the shift, through the kernels of the device.
Pair each_difference(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                     const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                     int64_t dim) {
  using Signature =
      Pair(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
           const OptionalTensor&, const OptionalTensor&, int64_t, c10::string_view);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("unlearnx::scale_shift_grad_diff", "").typed<Signature>();
  // In the compute type, so that 16-bit inputs are not rounded before they are squared.
  const auto wide = [&](const at::Tensor& t) { return t.to(compute_type(dy)); };
  const auto wide_or_none = [&](const OptionalTensor& t) { return t.has_value() ? OptionalTensor(wide(*t)) : t; };
  return op.call(wide(x), wide(dy), wide_or_none(x_new), wide_or_none(dy_new), {}, mean, rstd, dim, "none");
}

Pair scale_shift_grad_sq(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                         const OptionalTensor& dy_new, const OptionalTensor& weight, const OptionalTensor& mean,
                         const OptionalTensor& rstd, int64_t dim) {
  const FullPrecision full_precision;
  check_pairs("scale_shift_grad_sq", x, dy, x_new, dy_new);
  const auto w = checked_weight("scale_shift_grad_sq", weight, dy);
  const auto [scale, shift] = each_difference(x, dy, x_new, dy_new, mean, rstd, dim);
  const auto total = [&](const at::Tensor& rows) {
    return w.defined() ? at::mv(rows.square().t(), w) : rows.square().sum(0);
  };
  return {total(scale), total(shift)};
}

Pair scale_shift_grad_sqnorm(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                             int64_t dim) {
  check_pairs("scale_shift_grad_sqnorm", x, dy, x_new, dy_new);
  const auto [scale, shift] = each_difference(x, dy, x_new, dy_new, mean, rstd, dim);
  return {scale.square().sum(1), shift.square().sum(1)};
}

Pair scale_shift_grad_dot(const at::Tensor& x, const at::Tensor& dy, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                          int64_t dim, const at::Tensor& v_scale, const at::Tensor& v_shift) {
  check_pairs("scale_shift_grad_dot", x, dy, x_new, dy_new);
  const FullPrecision full_precision;
  const auto [scale, shift] = each_difference(x, dy, x_new, dy_new, mean, rstd, dim);
  check_direction("scale_shift_grad_dot", "v_scale", v_scale, dy, {scale.size(1)});
  check_direction("scale_shift_grad_dot", "v_shift", v_shift, dy, {shift.size(1)});
  return {at::mv(scale, v_scale.to(scale.scalar_type())), at::mv(shift, v_shift.to(shift.scalar_type()))};
}

}  // namespace

Pair scale_shift_grad_diff(ScaleShiftRows kernel, const at::Tensor& x, const at::Tensor& dy,
                           const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                           const OptionalTensor& mean, const OptionalTensor& rstd, int64_t dim,
                           c10::string_view reduction) {
  const bool keep = keeps_samples("scale_shift_grad_diff", reduction);
  check_pairs("scale_shift_grad_diff", x, dy, x_new, dy_new);
  const auto w = checked_weight("scale_shift_grad_diff", weight, dy);
  auto rows = rows_of(kernel, check_scale_shift_grad(x, dy, mean, rstd, dim));
  if (x_new.has_value()) rows = rows_of(kernel, check_scale_shift_grad(*x_new, *dy_new, mean, rstd, dim)).sub_(rows);
  if (w.defined()) rows.mul_(w.unsqueeze(1));
  const auto result = (keep ? rows : rows.sum(1)).to(dy.scalar_type());
  return {result.select(0, 0).clone(), result.select(0, 1).clone()};
}

}  // namespace unlearnx

TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
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

TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("scale_shift_grad_sq", &unlearnx::scale_shift_grad_sq);
  m.impl("scale_shift_grad_sqnorm", &unlearnx::scale_shift_grad_sqnorm);
  m.impl("scale_shift_grad_dot", &unlearnx::scale_shift_grad_dot);
}
