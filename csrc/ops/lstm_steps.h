// The loops over time, for any device: a product with the recurrent weight and one pointwise pass a step. What a
// device brings is `Cells`, the pointwise passes over N rows. Products add to what lies at their place, filled for all
// steps at once: on a GPU a copy of each step would be one more launch.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "ops/full_precision.h"
#include "ops/lstm.h"

namespace unlearnx {

/// (T + 1, N, H) whose first entry is `first`, or zero.
inline at::Tensor new_states(const LstmSizes& sizes, const MaybeTensor& first, const at::TensorOptions& options) {
  auto states = at::empty({sizes.steps + 1, sizes.rows, sizes.units}, options);
  if (first.has_value())
    states[0].copy_(*first);
  else
    states[0].zero_();
  return states;
}

/// What is sent to states (T + 1, N, H), as a tensor to add to.
inline at::Tensor sent_states(const LstmSizes& sizes, const MaybeTensor& sent, const at::TensorOptions& options) {
  return sent.has_value() ? sent->clone(at::MemoryFormat::Contiguous)
                          : at::zeros({sizes.steps + 1, sizes.rows, sizes.units}, options);
}

/// (hidden, cells, gates): states (T + 1, N, H) from the given ones on, pre-activations (T, N, 4H).
template <typename Cells>
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_forward(const at::Tensor& inputs, const MaybeTensor& h,
                                                            const MaybeTensor& c, const at::Tensor& weight) {
  const FullPrecision full_precision;
  const auto sizes = check_lstm_forward(inputs, h, c, weight);
  const auto gates = inputs.clone(at::MemoryFormat::Contiguous), transposed = weight.t();
  const auto hidden = new_states(sizes, h, gates.options()), cells = new_states(sizes, c, gates.options());
  const auto a = gates.unbind(), hs = hidden.unbind(), cs = cells.unbind();
  for (int64_t t = 0; t < sizes.steps; ++t) {
    if (t > 0 || h.has_value()) a[t].addmm_(hs[t], transposed);
    Cells::forward(a[t], cs[t], cs[t + 1], hs[t + 1]);
  }
  return {hidden, cells, gates};
}

/// (gates, hidden, cells): what reaches pre-activations (T, N, 4H) and states (T + 1, N, H) in all. The first states'
/// are left zero unless `initial`.
template <typename Cells>
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_backward(const MaybeTensor& to_hidden, const MaybeTensor& to_cells,
                                                             const MaybeTensor& to_gates, const at::Tensor& cells_given,
                                                             const at::Tensor& gates_given, const at::Tensor& weight,
                                                             bool initial) {
  const FullPrecision full_precision;
  const auto sizes = check_lstm_backward(to_hidden, to_cells, to_gates, cells_given, gates_given, weight);
  const auto gates = gates_given.contiguous(), cells = cells_given.contiguous();
  const auto da = at::empty_like(gates);
  const auto dh = sent_states(sizes, to_hidden, gates.options()), dc = sent_states(sizes, to_cells, gates.options());
  const auto source = to_gates.has_value() ? to_gates->contiguous().unbind() : std::vector<at::Tensor>(sizes.steps);
  const auto a = gates.unbind(), cs = cells.unbind(), das = da.unbind(), dhs = dh.unbind(), dcs = dc.unbind();
  for (int64_t t = sizes.steps - 1; t >= 0; --t) {
    if (t + 1 < sizes.steps) dhs[t + 1].addmm_(das[t + 1], weight);
    Cells::backward(a[t], cs[t], cs[t + 1], dhs[t + 1], source[t], dcs[t + 1], dcs[t], das[t]);
  }
  if (initial) {
    dhs[0].addmm_(das[0], weight);
  } else {
    dhs[0].zero_();
    dcs[0].zero_();
  }
  return {da, dh, dc};
}

/// (hidden, cells, gates): tangents of what lstm_forward returns, for tangents of the inputs and first states.
template <typename Cells>
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_tangent(const at::Tensor& inputs, const MaybeTensor& h,
                                                            const MaybeTensor& c, const at::Tensor& cells_given,
                                                            const at::Tensor& gates_given, const at::Tensor& weight) {
  const FullPrecision full_precision;
  const auto sizes = check_lstm_tangent(inputs, h, c, cells_given, gates_given, weight);
  const auto gates = gates_given.contiguous(), cells = cells_given.contiguous();
  const auto da = inputs.clone(at::MemoryFormat::Contiguous), transposed = weight.t();
  const auto dh = new_states(sizes, h, gates.options()), dc = new_states(sizes, c, gates.options());
  const auto a = gates.unbind(), cs = cells.unbind(), das = da.unbind(), dhs = dh.unbind(), dcs = dc.unbind();
  for (int64_t t = 0; t < sizes.steps; ++t) {
    if (t > 0 || h.has_value()) das[t].addmm_(dhs[t], transposed);
    Cells::tangent(a[t], cs[t], cs[t + 1], das[t], dcs[t], dcs[t + 1], dhs[t + 1]);
  }
  return {dh, dc, da};
}

/// (cells, gates): derivatives of <(to_hidden, to_cells), tangents> with respect to states and pre-activations, other
/// than those through the recurrence.
template <typename Cells>
std::tuple<at::Tensor, at::Tensor> lstm_curvature(const at::Tensor& cells_given, const at::Tensor& gates_given,
                                                  const at::Tensor& cells_tangent, const at::Tensor& gates_tangent,
                                                  const at::Tensor& to_hidden, const at::Tensor& to_cells) {
  const auto sizes = check_lstm_curvature(cells_given, gates_given, cells_tangent, gates_tangent, to_hidden, to_cells);
  const auto cells = cells_given.contiguous(), gates = gates_given.contiguous();
  const auto out_cells = at::empty_like(cells), out_gates = at::empty_like(gates);
  Cells::curvature(sizes, cells, gates, cells_tangent.contiguous(), gates_tangent.contiguous(), to_hidden.contiguous(),
                   to_cells.contiguous(), out_cells, out_gates);
  return {out_cells, out_gates};
}

}  // namespace unlearnx
