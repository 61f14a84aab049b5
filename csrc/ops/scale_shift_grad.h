#pragma once

#include <tuple>

#include "ops/layer_grad.h"

namespace unlearnx {

/// Inputs and output gradients of the scale and shift of a normalisation layer, checked: y = scale * x_hat + shift with
/// one scale and one shift a channel, and x_hat = (x - mean) * rstd where these are given, else x.
struct ScaleShiftGrad {
  int64_t samples, outer, channels, inner;  // memory order of x and dy
  at::Tensor x, dy;                         // dense in that order
  at::Tensor mean, rstd;                    // (channels,) in the compute type, or undefined

  at::ScalarType compute_type() const { return unlearnx::compute_type(dy); }
};

/// Works out, for every sample and channel, the sums over outer and inner of dy * x_hat (written to rows[0]) and of
/// dy (rows[1]); rows is (2, samples, channels), uninitialised, in the compute type.
using ScaleShiftRows = void (*)(const ScaleShiftGrad& problem, const at::Tensor& rows);

/// scale_shift_grad_diff of a device, from its kernel for the rows.
std::tuple<at::Tensor, at::Tensor> scale_shift_grad_diff(ScaleShiftRows kernel, const at::Tensor& x,
                                                         const at::Tensor& dy, const OptionalTensor& x_new,
                                                         const OptionalTensor& dy_new, const OptionalTensor& weight,
                                                         const OptionalTensor& mean, const OptionalTensor& rstd,
                                                         int64_t dim, c10::string_view reduction);

}  // namespace unlearnx
