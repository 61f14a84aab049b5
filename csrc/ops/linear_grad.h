#pragma once

#include "ops/layer_grad.h"

namespace unlearnx {

/// One problem of the linear_grad family, checked, flattened and contiguous.
///
/// Sample i has `positions` rows of x (positions, inputs) and dy (positions, outputs); its gradient is
/// g_i = dy_i^T x_i, its difference d_i = g_i(new) - g_i where a second pair is given, else g_i.
struct LinearGrad {
  int64_t samples, positions, outputs, inputs;
  Tensor x, dy;          // (samples * positions, inputs), (samples * positions, outputs)
  Tensor x_new, dy_new;  // the same, or undefined
  Tensor weight;         // (samples,), or undefined

  bool paired() const { return x_new.defined(); }
  ScalarType compute_type() const { return unlearnx::compute_type(x); }
  /// Whether every d_i is one outer product.
  bool outer() const { return positions == 1 && !paired(); }
  /// The same problem in the compute type, its weights multiplied into dy and dy_new.
  LinearGrad with_weights_applied() const;
};

/// Raises unless the arguments belong together; `op` is named in the message.
LinearGrad check_linear_grad(const char* op, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, const OptionalTensor& weight);

/// Where there is one position and one pair, d_i = dy_i (outer) x_i: then sum_i w_i d_i^2 is the sum of the gradients
/// of dy^2 and x^2. dy, small beside x, is squared here.
LinearGrad with_squared_outputs(const LinearGrad& problem);

/// sum_i w_i d_i in the compute type, through the BLAS of the device: (outputs, inputs).
Tensor linear_grad_sum(const LinearGrad& problem);

}  // namespace unlearnx
