// The loops over time, for any device: a product with the recurrent weight and one pointwise pass a step. What a
// device brings is `Cells`, the pointwise passes over N rows. Products add to what lies at their place, filled for all
// steps at once: on a GPU a copy of each step would be one more launch.
#pragma once

#include <vector>

#include "ops/full_precision.h"
#include "ops/lstm.h"

namespace unlearnx {

/// (T + 1, N, H) whose first entry is `first`, or zero.
inline Tensor new_states(const LstmSizes& sizes, const OptionalTensor& first, const Like& like) {
  auto states = empty({sizes.steps + 1, sizes.rows, sizes.units}, like);
  if (first.has_value())
    states.select(0, 0).copy_(*first);
  else
    states.select(0, 0).zero_();
  return states;
}

/// What is sent to states (T + 1, N, H), as a tensor to add to.
inline Tensor sent_states(const LstmSizes& sizes, const OptionalTensor& sent, const Like& like) {
  return sent.has_value() ? sent->clone() : zeros({sizes.steps + 1, sizes.rows, sizes.units}, like);
}

/// The entries of (T, ...), one for each step.
inline TensorList steps_of(const Tensor& t) {
  TensorList steps;
  for (int64_t i = 0; i < t.size(0); ++i) steps.push_back(t.select(0, i));
  return steps;
}

/// (hidden, cells, gates): states (T + 1, N, H) from the given ones on, pre-activations (T, N, 4H).
template <typename Cells>
std::tuple<Tensor, Tensor, Tensor> lstm_forward(const Tensor& inputs, const OptionalTensor& h, const OptionalTensor& c,
                                                const Tensor& weight) {
  const FullPrecision full_precision(inputs);
  const auto sizes = check_lstm_forward(inputs, h, c, weight);
  const auto gates = inputs.clone(), transposed = weight.t();
  const auto hidden = new_states(sizes, h, Like(gates)), cells = new_states(sizes, c, Like(gates));
  const auto a = steps_of(gates), hs = steps_of(hidden), cs = steps_of(cells);
  for (int64_t t = 0; t < sizes.steps; ++t) {
    if (t > 0 || h.has_value()) a[t].addmm_(hs[t], transposed);
    Cells::forward(a[t], cs[t], cs[t + 1], hs[t + 1]);
  }
  return {hidden, cells, gates};
}

/// (gates, hidden, cells): what reaches pre-activations (T, N, 4H) and states (T + 1, N, H) in all. The first states'
/// are left zero unless `initial`.
template <typename Cells>
std::tuple<Tensor, Tensor, Tensor> lstm_backward(const OptionalTensor& to_hidden, const OptionalTensor& to_cells,
                                                 const OptionalTensor& to_gates, const Tensor& cells_given,
                                                 const Tensor& gates_given, const Tensor& weight, bool initial) {
  const FullPrecision full_precision(gates_given);
  const auto sizes = check_lstm_backward(to_hidden, to_cells, to_gates, cells_given, gates_given, weight);
  const auto gates = gates_given.contiguous(), cells = cells_given.contiguous();
  const auto da = empty(gates.sizes(), Like(gates));
  const auto dh = sent_states(sizes, to_hidden, Like(gates)), dc = sent_states(sizes, to_cells, Like(gates));
  const auto source = to_gates.has_value() ? steps_of(to_gates->contiguous()) : TensorList(sizes.steps);
  const auto a = steps_of(gates), cs = steps_of(cells), das = steps_of(da), dhs = steps_of(dh), dcs = steps_of(dc);
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
std::tuple<Tensor, Tensor, Tensor> lstm_tangent(const Tensor& inputs, const OptionalTensor& h, const OptionalTensor& c,
                                                const Tensor& cells_given, const Tensor& gates_given,
                                                const Tensor& weight) {
  const FullPrecision full_precision(inputs);
  const auto sizes = check_lstm_tangent(inputs, h, c, cells_given, gates_given, weight);
  const auto gates = gates_given.contiguous(), cells = cells_given.contiguous();
  const auto da = inputs.clone(), transposed = weight.t();
  const auto dh = new_states(sizes, h, Like(gates)), dc = new_states(sizes, c, Like(gates));
  const auto a = steps_of(gates), cs = steps_of(cells), das = steps_of(da), dhs = steps_of(dh), dcs = steps_of(dc);
  for (int64_t t = 0; t < sizes.steps; ++t) {
    if (t > 0 || h.has_value()) das[t].addmm_(dhs[t], transposed);
    Cells::tangent(a[t], cs[t], cs[t + 1], das[t], dcs[t], dcs[t + 1], dhs[t + 1]);
  }
  return {dh, dc, da};
}

/// (cells, gates): derivatives of <(to_hidden, to_cells), tangents> with respect to states and pre-activations, other
/// than those through the recurrence.
template <typename Cells>
std::tuple<Tensor, Tensor> lstm_curvature(const Tensor& cells_given, const Tensor& gates_given,
                                          const Tensor& cells_tangent, const Tensor& gates_tangent,
                                          const Tensor& to_hidden, const Tensor& to_cells) {
  const auto sizes = check_lstm_curvature(cells_given, gates_given, cells_tangent, gates_tangent, to_hidden, to_cells);
  const auto cells = cells_given.contiguous(), gates = gates_given.contiguous();
  const auto out_cells = empty(cells.sizes(), Like(cells)), out_gates = empty(gates.sizes(), Like(gates));
  Cells::curvature(sizes, cells, gates, cells_tangent.contiguous(), gates_tangent.contiguous(), to_hidden.contiguous(),
                   to_cells.contiguous(), out_cells, out_gates);
  return {out_cells, out_gates};
}

}  // namespace unlearnx
