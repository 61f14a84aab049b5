#pragma once

#include <ATen/core/Tensor.h>

namespace unlearnx {

/// Raises unless gates (N, 4H), cell (N, H), squashed (N, H), dh (N, H), dc (N, H) and da (N, 4H) belong together.
void check_lstm_gates(const at::Tensor& gates, const at::Tensor& cell, const at::Tensor& squashed, const at::Tensor& dh,
                      const at::Tensor& dc, const at::Tensor& da);

}  // namespace unlearnx
