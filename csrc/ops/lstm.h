// The recurrence of one LSTM layer in one direction, its adjoint, its tangent and its curvature.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace unlearnx {

using MaybeTensor = std::optional<at::Tensor>;

/// Steps T, rows N and units H.
struct LstmSizes {
  int64_t steps, rows, units;
};

LstmSizes check_lstm_forward(const at::Tensor& inputs, const MaybeTensor& h, const MaybeTensor& c,
                             const at::Tensor& weight);
LstmSizes check_lstm_backward(const MaybeTensor& to_hidden, const MaybeTensor& to_cells, const MaybeTensor& to_gates,
                              const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& weight);
LstmSizes check_lstm_tangent(const at::Tensor& inputs, const MaybeTensor& h, const MaybeTensor& c,
                             const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& weight);
LstmSizes check_lstm_curvature(const at::Tensor& cells, const at::Tensor& gates, const at::Tensor& cells_tangent,
                               const at::Tensor& gates_tangent, const at::Tensor& to_hidden,
                               const at::Tensor& to_cells);

}  // namespace unlearnx
