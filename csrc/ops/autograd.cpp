// Ops without a derivative: a backward pass through them raises instead of giving zeros silently.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY_IMPL(unlearnx, Autograd, m) {
  for (const char* op :
       {"linear_grad_sq",       "linear_grad_sqnorm",      "linear_grad_dot",      "conv2d_grad_diff",
        "conv2d_grad_sq",       "conv2d_grad_sqnorm",      "conv2d_grad_dot",      "scale_shift_grad_diff",
        "scale_shift_grad_sq",  "scale_shift_grad_sqnorm", "scale_shift_grad_dot", "embedding_grad_diff",
        "embedding_grad_sq",    "embedding_grad_sqnorm",   "embedding_grad_dot",   "softmax_linear_hvp",
        "lissa_softmax_linear", "lstm_backward",           "lstm_tangent",         "lstm_curvature"})
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
}
