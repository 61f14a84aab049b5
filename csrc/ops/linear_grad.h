#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace unlearnx {

/// One problem of the linear_grad family, checked, flattened and contiguous.
///
/// Sample i has `positions` rows of x (positions, inputs) and dy (positions, outputs); its gradient is
/// g_i = dy_i^T x_i, its difference d_i = g_i(new) - g_i where a second pair is given, else g_i.
struct LinearGrad {
  int64_t samples, positions, outputs, inputs;
  at::Tensor x, dy;          // (samples * positions, inputs), (samples * positions, outputs)
  at::Tensor x_new, dy_new;  // the same, or undefined
  at::Tensor weight;         // (samples,), or undefined

  bool paired() const { return x_new.defined(); }
  /// Dtype that sums are taken in: differences of 16-bit sums would cancel what rounding left of them.
  at::ScalarType compute_type() const { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
  /// Rows of x or dy as (samples, positions, ...) in the compute type; dy times the samples' weights.
  at::Tensor batches(const at::Tensor& rows) const;
  at::Tensor weighted(const at::Tensor& dy_rows) const;
};

/// Raises unless the arguments belong together; `op` is named in the message.
LinearGrad check_linear_grad(const char* op, const at::Tensor& x, const at::Tensor& dy,
                             const std::optional<at::Tensor>& x_new, const std::optional<at::Tensor>& dy_new,
                             const std::optional<at::Tensor>& weight);

/// True for reduction="none", false for "sum"; raises for anything else.
bool keeps_samples(const char* op, c10::string_view reduction);

/// sum_i w_i d_i through the BLAS of the device: (outputs, inputs).
at::Tensor linear_grad_sum(const LinearGrad& problem);

}  // namespace unlearnx
