#pragma once

#include <tuple>

#include "common/dispatcher.h"
#include "ops/layer_grad.h"

namespace unlearnx {

/// Inputs and output gradients of the scale and shift of a normalisation layer, checked: y = scale * x_hat + shift with
/// one scale and one shift a channel, and x_hat = (x - mean) * rstd where these are given, else x.
struct ScaleShiftGrad {
  int64_t samples, outer, channels, inner;  // memory order of x and dy
  Tensor x, dy;                             // dense in that order
  Tensor mean, rstd;                        // (channels,) in the compute type, or undefined

  ScalarType compute_type() const { return unlearnx::compute_type(dy); }
};

/// Works out, for every sample and channel, the sums over outer and inner of dy * x_hat (written to rows[0]) and of
/// dy (rows[1]); rows is (2, samples, channels), uninitialised, in the compute type.
using ScaleShiftRows = void (*)(const ScaleShiftGrad& problem, const Tensor& rows);

using Pair = std::tuple<Tensor, Tensor>;

// The ops of a device, from its kernel for the rows.
Pair scale_shift_grad_diff(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                           const OptionalTensor& dy_new, const OptionalTensor& weight, const OptionalTensor& mean,
                           const OptionalTensor& rstd, int64_t dim, const std::string& reduction);
Pair scale_shift_grad_sq(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                         const OptionalTensor& dy_new, const OptionalTensor& weight, const OptionalTensor& mean,
                         const OptionalTensor& rstd, int64_t dim);
Pair scale_shift_grad_sqnorm(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                             int64_t dim);
Pair scale_shift_grad_dot(ScaleShiftRows kernel, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new, const OptionalTensor& mean, const OptionalTensor& rstd,
                          int64_t dim, const Tensor& v_scale, const Tensor& v_shift);

/// An op above with the kernel in place, for its signature without it.
template <ScaleShiftRows kernel, auto op>
struct WithRows;
template <ScaleShiftRows kernel, typename... Arguments, Pair (*op)(ScaleShiftRows, Arguments...)>
struct WithRows<kernel, op> {
  static Pair call(Arguments... arguments) { return op(kernel, arguments...); }
};

/// Registers all of them for a device.
template <ScaleShiftRows kernel>
void register_scale_shift_grad(torch::stable::detail::StableLibrary& m) {
  m.impl("scale_shift_grad_diff", TORCH_BOX((&WithRows<kernel, &scale_shift_grad_diff>::call)));
  m.impl("scale_shift_grad_sq", TORCH_BOX((&WithRows<kernel, &scale_shift_grad_sq>::call)));
  m.impl("scale_shift_grad_sqnorm", TORCH_BOX((&WithRows<kernel, &scale_shift_grad_sqnorm>::call)));
  m.impl("scale_shift_grad_dot", TORCH_BOX((&WithRows<kernel, &scale_shift_grad_dot>::call)));
}

}  // namespace unlearnx
