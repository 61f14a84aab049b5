"""Per-sample weight gradients of linear layers from their inputs and output gradients.

The gradient of sample i is ``g_i = sum_t dy[i, t] (outer) x[i, t]`` over its positions t. With a second pair the
difference is ``d_i = g_i(x_new, dy_new) - g_i(x, dy)``; without one it is ``d_i = g_i``. All functions take these
arguments:

    x: inputs of the layer, (N, ..., I).
    dy: gradients of the per-sample losses with respect to its outputs, (N, ..., O).
    x_new, dy_new: the same after the change, shaped like ``x`` and ``dy``; both or neither.

Tensors are float32, float64, bfloat16 or float16; sums are taken in float32 or better. All functions raise TypeError
where a tensor is not floating or dtypes differ, and ValueError where shapes or devices do not match.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from unlearnx.ops._call import call_past_autograd, register_fake
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._not_differentiable import not_differentiable

__all__ = ["linear_grad_diff", "linear_grad_dot", "linear_grad_sq", "linear_grad_sqnorm"]


def linear_grad_diff(
    x: Tensor,
    dy: Tensor,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Differences of per-sample weight gradients of a linear layer.

    The gradient of sample i is ``g_i = sum_t dy[i, t] (outer) x[i, t]`` over its positions t. With a second pair
    the difference is ``d_i = g_i(x_new, dy_new) - g_i(x, dy)``; without one it is ``d_i = g_i``.

    Args:
        x: inputs of the layer, (N, ..., I).
        dy: gradients of the per-sample losses with respect to its outputs, (N, ..., O).
        x_new, dy_new: the same after the change, shaped like ``x`` and ``dy``; both or neither.
        weight: factors w_i of the samples, (N,).
        reduction: ``"sum"`` for ``sum_i w_i d_i``, ``"none"`` for each ``w_i d_i``.

    Returns:
        (O, I), or (N, O, I) with ``reduction="none"``, in the dtype of ``x``; sums are taken in float32 or better.
        Differentiable, also under ``torch.func`` transforms and ``torch.compile``.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes or devices do not match, or ``reduction`` is unknown.

    Example:
        >>> x, dy, dy_new = torch.randn(8, 3), torch.randn(8, 4), torch.randn(8, 4)
        >>> change = linear_grad_diff(x, dy, x, dy_new)  # labels change, features do not
        >>> torch.allclose(change, (dy_new - dy).mT @ x, atol=1e-5)
        True
    """
    # torch.compile cannot trace a Function with a jvp, so it uses the formula registered below.
    apply = torch.ops.unlearnx.linear_grad_diff if torch.compiler.is_compiling() else _LinearGradDiff.apply
    return apply(x, dy, x_new, dy_new, weight, reduction)


def linear_grad_sq(
    x: Tensor,
    dy: Tensor,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Squared per-sample weight gradients (or differences) of a linear layer, summed over samples.

    Positions are added up before squaring; the (N, O, I) gradients are never stored.

    Args:
        x, dy, x_new, dy_new: see the module's docstring.
        weight: factors w_i of the samples, (N,).

    Returns:
        ``sum_i w_i d_i^2`` as (O, I), in float32 (float64 for float64 inputs). Not differentiable. With one position
        and no second pair, squares of ``dy`` and of ``x`` are multiplied, so that in float32 their magnitudes must be
        between 1e-19 and 1e19.

    Example:
        >>> x, dy = torch.randn(8, 5, 3), torch.randn(8, 5, 4)  # five positions per sample
        >>> fisher = linear_grad_sq(x, dy) / len(x)
        >>> torch.allclose(fisher, (dy.mT @ x).square().mean(0), rtol=1e-4)
        True
    """
    return call_past_autograd(torch.ops.unlearnx.linear_grad_sq, x, dy, x_new, dy_new, weight)


def linear_grad_sqnorm(x: Tensor, dy: Tensor, x_new: Tensor | None = None, dy_new: Tensor | None = None) -> Tensor:
    """Squared norms ``||d_i||^2`` of per-sample weight gradients (or differences) of a linear layer.

    Args:
        x, dy, x_new, dy_new: see the module's docstring.

    Returns:
        (N,), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x, dy = torch.randn(8, 3), torch.randn(8, 4)
        >>> torch.allclose(linear_grad_sqnorm(x, dy), x.square().sum(1) * dy.square().sum(1), rtol=1e-4)
        True
    """
    return call_past_autograd(torch.ops.unlearnx.linear_grad_sqnorm, x, dy, x_new, dy_new)


def linear_grad_dot(
    x: Tensor, dy: Tensor, x_new: Tensor | None = None, dy_new: Tensor | None = None, *, v: Tensor
) -> Tensor:
    """Inner products ``<d_i, v>`` of per-sample weight gradients (or differences) of a linear layer with a direction.

    Args:
        x, dy, x_new, dy_new: see the module's docstring.
        v: direction, (O, I).

    Returns:
        (N,), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x, dy, v = torch.randn(8, 3), torch.randn(8, 4), torch.randn(4, 3)
        >>> torch.allclose(linear_grad_dot(x, dy, v=v), (dy * (x @ v.mT)).sum(1), atol=1e-5)
        True
    """
    return call_past_autograd(torch.ops.unlearnx.linear_grad_dot, x, dy, x_new, dy_new, v=v)


not_differentiable("linear_grad_sq", "linear_grad_sqnorm", "linear_grad_dot")


@register_fake("linear_grad_sq")
def _(x, dy, x_new=None, dy_new=None, weight=None):
    return x.new_empty((dy.shape[-1], x.shape[-1]), dtype=compute_dtype(x))


@register_fake("linear_grad_sqnorm")
def _(x, dy, x_new=None, dy_new=None):
    return x.new_empty(x.shape[0], dtype=compute_dtype(x))


@register_fake("linear_grad_dot")
def _(x, dy, x_new=None, dy_new=None, *, v):
    return x.new_empty(x.shape[0], dtype=compute_dtype(x))


@register_fake("linear_grad_diff")
def _(x, dy, x_new=None, dy_new=None, weight=None, reduction="sum"):
    shape = (dy.shape[-1], x.shape[-1])
    return x.new_empty(shape if reduction == "sum" else (x.shape[0], *shape))


def _by_position(t: Tensor) -> Tensor:
    """(N, ..., K) as (N, T, K)."""
    return t.reshape(t.shape[0], prod(t.shape[1:-1]), t.shape[-1])


def _cotangents(x: Tensor, dy: Tensor, weight: Tensor | None, grad: Tensor, sign: int):
    """Gradients of <grad, sign * w_i dy_i^T x_i> with respect to x and dy, and each sample's <grad, sign * g_i>."""
    grad = sign * grad  # (O, I) or (N, O, I); both broadcast in the products with (N, T, ...)
    along_x = _by_position(dy) @ grad
    dot = (along_x * _by_position(x)).sum((1, 2))
    along_dy = _by_position(x) @ grad.mT
    if weight is not None:
        w = weight.to(x.dtype).view(-1, 1, 1)
        along_x, along_dy = w * along_x, w * along_dy
    return along_x.reshape(x.shape), along_dy.reshape(dy.shape), dot


def _setup_context(ctx, inputs, output):
    *tensors, ctx.reduction = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    x, dy, x_new, dy_new, weight = ctx.saved_tensors
    paired = x_new is not None
    grad_x, grad_dy, dot = _cotangents(x, dy, weight, grad, -1 if paired else 1)
    grad_x_new = grad_dy_new = None
    if paired:
        grad_x_new, grad_dy_new, dot_new = _cotangents(x_new, dy_new, weight, grad, 1)
        dot = dot + dot_new
    grad_weight = None if weight is None else dot.to(weight.dtype)
    return grad_x, grad_dy, grad_x_new, grad_dy_new, grad_weight, None


class _LinearGradDiff(torch.autograd.Function):
    """The op is bilinear in each (x, dy) and linear in the weights: derivatives are the op itself or products."""

    @staticmethod
    def forward(x, dy, x_new, dy_new, weight, reduction):
        return call_past_autograd(
            torch.ops.unlearnx.linear_grad_diff, x, dy, x_new, dy_new, weight=weight, reduction=reduction
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        _setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:5])

    backward = staticmethod(_backward)

    @staticmethod
    def jvp(ctx, x_t, dy_t, x_new_t, dy_new_t, weight_t, _):
        x, dy, x_new, dy_new, weight = ctx.saved_tensors
        paired = x_new is not None

        def product(a, b, w, sign):
            if a is None or b is None:
                return 0
            return sign * linear_grad_diff(a, b, weight=w, reduction=ctx.reduction)

        tangent = product(x_t, dy, weight, -1 if paired else 1) + product(x, dy_t, weight, -1 if paired else 1)
        if paired:
            tangent = tangent + product(x_new_t, dy_new, weight, 1) + product(x_new, dy_new_t, weight, 1)
        if weight_t is not None:
            tangent = tangent + linear_grad_diff(x, dy, x_new, dy_new, weight=weight_t, reduction=ctx.reduction)
        return tangent

    @staticmethod
    def vmap(info, in_dims, x, dy, x_new, dy_new, weight, reduction):
        batch = info.batch_size

        def batched(t, dim):
            return None if t is None else t.movedim(dim, 0) if dim is not None else t.expand(batch, *t.shape)

        x, dy, x_new, dy_new, weight = map(batched, (x, dy, x_new, dy_new, weight), in_dims[:5])
        if reduction == "none":  # all batches as one batch with more samples
            fold = [None if t is None else t.flatten(0, 1) for t in (x, dy, x_new, dy_new, weight)]
            result = _LinearGradDiff.apply(*fold, "none")
            return result.unflatten(0, (batch, x.shape[1])), 0
        if weight is not None:  # below, a batch becomes one sample and its samples become positions

            def scaled(t):
                return t * weight.to(t.dtype).view(*weight.shape, *[1] * (t.dim() - 2))

            dy, dy_new = scaled(dy), None if dy_new is None else scaled(dy_new)
        return linear_grad_diff(x, dy, x_new, dy_new, reduction="none"), 0


torch.library.register_autograd("unlearnx::linear_grad_diff", _backward, setup_context=_setup_context)
