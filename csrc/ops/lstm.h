// The recurrence of one LSTM layer in one direction, its adjoint, its tangent and its curvature.
#pragma once

#include <optional>
#include <tuple>

#include "common/tensor.h"

namespace unlearnx {

/// Steps T, rows N and units H.
struct LstmSizes {
  int64_t steps, rows, units;
};

LstmSizes check_lstm_forward(const Tensor& inputs, const OptionalTensor& h, const OptionalTensor& c,
                             const Tensor& weight);
LstmSizes check_lstm_backward(const OptionalTensor& to_hidden, const OptionalTensor& to_cells,
                              const OptionalTensor& to_gates, const Tensor& cells, const Tensor& gates,
                              const Tensor& weight);
LstmSizes check_lstm_tangent(const Tensor& inputs, const OptionalTensor& h, const OptionalTensor& c,
                             const Tensor& cells, const Tensor& gates, const Tensor& weight);
LstmSizes check_lstm_curvature(const Tensor& cells, const Tensor& gates, const Tensor& cells_tangent,
                               const Tensor& gates_tangent, const Tensor& to_hidden, const Tensor& to_cells);

}  // namespace unlearnx
