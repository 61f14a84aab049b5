// The loops over time, for any device: a product with the recurrent weight and one pointwise pass a step. What a
// device brings is `Cells`, the pointwise passes over N rows.
#pragma once

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

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

inline MaybeTensor contiguous(const MaybeTensor& t) {
  return t.has_value() ? MaybeTensor(t->contiguous()) : std::nullopt;
}

/// out = source + a b, either of source and the product missing where it is zero.
inline void add_product(at::Tensor out, const MaybeTensor& source, const at::Tensor& a, const at::Tensor& b,
                        bool product) {
  if (!product)
    source.has_value() ? out.copy_(*source) : out.zero_();
  else if (source.has_value())
    at::addmm_out(out, *source, a, b);
  else
    at::mm_out(out, a, b);
}

/// (hidden, cells, gates): states (T + 1, N, H) from the given ones on, pre-activations (T, N, 4H).
template <typename Cells>
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_forward(const at::Tensor& inputs_given, const MaybeTensor& h,
                                                            const MaybeTensor& c, const at::Tensor& weight) {
  const auto sizes = check_lstm_forward(inputs_given, h, c, weight);
  const auto inputs = inputs_given.contiguous(), transposed = weight.t();
  const auto hidden = new_states(sizes, h, inputs.options()), cells = new_states(sizes, c, inputs.options());
  const auto gates = at::empty_like(inputs);
  for (int64_t t = 0; t < sizes.steps; ++t) {
    add_product(gates[t], inputs[t], hidden[t], transposed, t > 0 || h.has_value());
    Cells::forward(gates[t], cells[t], cells[t + 1], hidden[t + 1]);
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
  const auto sizes = check_lstm_backward(to_hidden, to_cells, to_gates, cells_given, gates_given, weight);
  const auto gates = gates_given.contiguous(), cells = cells_given.contiguous();
  const auto from_hidden = contiguous(to_hidden), from_cells = contiguous(to_cells), from_gates = contiguous(to_gates);
  const auto at_step = [](const MaybeTensor& t, int64_t step) {
    return t.has_value() ? MaybeTensor((*t)[step]) : std::nullopt;
  };
  const auto da = at::empty_like(gates);
  const auto dh = at::empty({sizes.steps + 1, sizes.rows, sizes.units}, gates.options()), dc = at::empty_like(dh);
  // What step t + 1 hands to the cell of step t lies where that cell's adjoint is to be.
  dc[sizes.steps].zero_();
  for (int64_t t = sizes.steps - 1; t >= 0; --t) {
    const bool later = t + 1 < sizes.steps;
    add_product(dh[t + 1], at_step(from_hidden, t + 1), later ? da[t + 1] : da[t], weight, later);
    if (from_cells.has_value()) dc[t + 1].add_((*from_cells)[t + 1]);
    Cells::backward(gates[t], cells[t], cells[t + 1], dh[t + 1], at_step(from_gates, t), dc[t + 1], dc[t], da[t]);
  }
  if (initial) {
    add_product(dh[0], at_step(from_hidden, 0), da[0], weight, true);
    if (from_cells.has_value()) dc[0].add_((*from_cells)[0]);
  } else {
    dh[0].zero_();
    dc[0].zero_();
  }
  return {da, dh, dc};
}

/// (hidden, cells, gates): tangents of what lstm_forward returns, for tangents of the inputs and first states.
template <typename Cells>
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_tangent(const at::Tensor& inputs_given, const MaybeTensor& h,
                                                            const MaybeTensor& c, const at::Tensor& cells_given,
                                                            const at::Tensor& gates_given, const at::Tensor& weight) {
  const auto sizes = check_lstm_tangent(inputs_given, h, c, cells_given, gates_given, weight);
  const auto inputs = inputs_given.contiguous(), transposed = weight.t();
  const auto gates = gates_given.contiguous(), cells = cells_given.contiguous();
  const auto dh = new_states(sizes, h, inputs.options()), dc = new_states(sizes, c, inputs.options());
  const auto da = at::empty_like(inputs);
  for (int64_t t = 0; t < sizes.steps; ++t) {
    add_product(da[t], inputs[t], dh[t], transposed, t > 0 || h.has_value());
    Cells::tangent(gates[t], cells[t], cells[t + 1], da[t], dc[t], dc[t + 1], dh[t + 1]);
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
  const auto out_cells = at::zeros({sizes.steps + 1, sizes.rows, sizes.units}, gates.options());
  const auto out_gates = at::empty_like(gates);
  Cells::curvature(sizes, cells, gates, cells_tangent.contiguous(), gates_tangent.contiguous(), to_hidden.contiguous(),
                   to_cells.contiguous(), out_cells, out_gates);
  return {out_cells, out_gates};
}

}  // namespace unlearnx
