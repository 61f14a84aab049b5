#pragma once

#include <optional>
#include <tuple>

#include "common/tensor.h"

namespace unlearnx {

/// Softmax regression at fixed probabilities, and the right-hand sides its Hessian is multiplied with, checked.
///
/// The rows of v run over (class, side): the `sides` values of one class stand side by side in u = h v^T, so that the
/// row pass between the two products runs along contiguous memory.
struct SoftmaxLinear {
  int64_t samples, features, classes, sides;
  Tensor h, p;  // (samples, features), (samples, classes), contiguous in the compute type
  Tensor v;     // (classes * sides, features), the same; never the caller's memory

  int64_t rows() const { return classes * sides; }
  ScalarType compute_type() const { return h.scalar_type(); }
  /// Rows ordered as v are, in the shape and dtype of `v_given`.
  Tensor as_given(const Tensor& rows, const Tensor& v_given) const;
};

/// Consecutive samples.
struct Batch {
  int64_t begin, size;
};

/// A whole LiSSA run, checked; the samples are in the order in which they are visited.
struct LissaRun {
  SoftmaxLinear problem;
  double keep, inverse_scale;  // 1 - damping, 1 / scale
  int64_t batch_size, iterations, patience;

  Batch batch(int64_t iteration) const;
  /// Filled with NaN: (iterations, sides).
  Tensor new_history() const;
  /// What the op returns, from the last state and the history.
  std::tuple<Tensor, Tensor> results(const Tensor& state, const Tensor& history, const Tensor& v_given) const;
};

/// Raise unless the arguments belong together; `op` is named in the message.
SoftmaxLinear check_softmax_linear(const char* op, const Tensor& h, const Tensor& probs, const Tensor& v);
LissaRun check_lissa_softmax_linear(const Tensor& h, const Tensor& probs, const Tensor& v, double damping, double scale,
                                    std::optional<int64_t> batch_size, int64_t iterations,
                                    std::optional<int64_t> patience, const OptionalTensor& order);

}  // namespace unlearnx
