"""Per-sample gradients of the scale and shift of normalisation layers, ``y = scale * x_hat + shift``.

The gradient of sample i is, for the scale, the sum over its positions of ``dy * x_hat``, and for the shift the sum of
``dy``. With a second pair the difference is ``d_i = g_i(x_new, dy_new) - g_i(x, dy)``; without one it is ``d_i = g_i``.
All functions return a pair, for the scale and for the shift, and take these arguments:

    x: normalised inputs x_hat, (N, ..., C, ...); with mean and rstd, inputs before ``x_hat = (x - mean) * rstd``.
    dy: gradients of the per-sample losses with respect to the outputs, shaped like ``x``.
    x_new, dy_new: the same after the change; both or neither.
    mean, rstd: fixed statistics, such as those of batch normalisation in eval mode, (C,) each; both or neither.
    dim: the channels' dimension: 1 for BatchNorm and GroupNorm, -1 for LayerNorm and RMSNorm.

Tensors are float32, float64, bfloat16 or float16; sums are taken in float32 or better. All functions raise TypeError
where a tensor is not floating or dtypes differ, and ValueError where shapes or devices do not match.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx.ops._call import call_past_autograd, register_fake
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._not_differentiable import not_differentiable

__all__ = ["scale_shift_grad_diff", "scale_shift_grad_dot", "scale_shift_grad_sq", "scale_shift_grad_sqnorm"]

Pair = tuple[Tensor, Tensor]


def scale_shift_grad_diff(
    x: Tensor,
    dy: Tensor,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    dim: int = -1,
    reduction: str = "sum",
) -> Pair:
    """Per-sample gradients (or differences) of the scale and the shift of a normalisation layer.

    Args:
        x, dy, x_new, dy_new, mean, rstd, dim: see the module's docstring.
        weight: factors w_i of the samples, (N,).
        reduction: ``"sum"`` for ``sum_i w_i d_i``, ``"none"`` for each ``w_i d_i``.

    Returns:
        (C,) each, or (N, C) each with ``reduction="none"``, in the dtype of ``x``. Not differentiable.

    Example:
        >>> x_hat, dy = torch.randn(8, 5, 16), torch.randn(8, 5, 16)  # LayerNorm over 16 channels of 5 positions
        >>> scale, shift = scale_shift_grad_diff(x_hat, dy, reduction="none")
        >>> scale.shape, torch.allclose(shift, dy.sum(1), atol=1e-5)
        (torch.Size([8, 16]), True)
    """
    return call_past_autograd(
        torch.ops.unlearnx.scale_shift_grad_diff,
        x,
        dy,
        x_new,
        dy_new,
        weight=weight,
        mean=mean,
        rstd=rstd,
        dim=dim,
        reduction=reduction,
    )


def scale_shift_grad_sq(
    x: Tensor,
    dy: Tensor,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    dim: int = -1,
) -> Pair:
    """Squared per-sample gradients (or differences) of the scale and the shift, summed over samples.

    Args:
        x, dy, x_new, dy_new, mean, rstd, dim: see the module's docstring.
        weight: factors w_i of the samples, (N,).

    Returns:
        ``sum_i w_i d_i^2`` as (C,) each, in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x, dy = torch.randn(8, 3, 6, 6), torch.randn(8, 3, 6, 6)  # BatchNorm with frozen statistics
        >>> scale, shift = scale_shift_grad_sq(x, dy, mean=torch.zeros(3), rstd=torch.ones(3), dim=1)
        >>> torch.allclose(shift, dy.sum((2, 3)).square().sum(0), rtol=1e-4)
        True
    """
    return call_past_autograd(
        torch.ops.unlearnx.scale_shift_grad_sq, x, dy, x_new, dy_new, weight=weight, mean=mean, rstd=rstd, dim=dim
    )


def scale_shift_grad_sqnorm(
    x: Tensor,
    dy: Tensor,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    dim: int = -1,
) -> Pair:
    """Squared norms ``||d_i||^2`` of the per-sample gradients (or differences) of the scale and the shift.

    Args:
        x, dy, x_new, dy_new, mean, rstd, dim: see the module's docstring.

    Returns:
        (N,) each, in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x_hat, dy = torch.randn(8, 16), torch.randn(8, 16)
        >>> scale, shift = scale_shift_grad_sqnorm(x_hat, dy)
        >>> torch.allclose(scale, (dy * x_hat).square().sum(1), rtol=1e-4)
        True
    """
    return call_past_autograd(
        torch.ops.unlearnx.scale_shift_grad_sqnorm, x, dy, x_new, dy_new, mean=mean, rstd=rstd, dim=dim
    )


def scale_shift_grad_dot(
    x: Tensor,
    dy: Tensor,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    dim: int = -1,
    v_scale: Tensor,
    v_shift: Tensor,
) -> Pair:
    """Inner products ``<d_i, v>`` of the per-sample gradients (or differences) with directions.

    Args:
        x, dy, x_new, dy_new, mean, rstd, dim: see the module's docstring.
        v_scale, v_shift: directions, (C,) each.

    Returns:
        (N,) each, in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x_hat, dy = torch.randn(8, 16), torch.randn(8, 16)
        >>> scale, shift = scale_shift_grad_dot(x_hat, dy, v_scale=torch.ones(16), v_shift=torch.ones(16))
        >>> torch.allclose(shift, dy.sum(1), atol=1e-5)
        True
    """
    return call_past_autograd(
        torch.ops.unlearnx.scale_shift_grad_dot,
        x,
        dy,
        x_new,
        dy_new,
        mean=mean,
        rstd=rstd,
        dim=dim,
        v_scale=v_scale,
        v_shift=v_shift,
    )


def _pair(x, *shape, dtype=None):
    return x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)


not_differentiable("scale_shift_grad_diff", "scale_shift_grad_sq", "scale_shift_grad_sqnorm", "scale_shift_grad_dot")


@register_fake("scale_shift_grad_diff")
def _(x, dy, x_new=None, dy_new=None, *, weight=None, mean=None, rstd=None, dim=-1, reduction="sum"):
    return _pair(x, *([] if reduction == "sum" else [x.shape[0]]), x.shape[dim])


@register_fake("scale_shift_grad_sq")
def _(x, dy, x_new=None, dy_new=None, *, weight=None, mean=None, rstd=None, dim=-1):
    return _pair(x, x.shape[dim], dtype=compute_dtype(x))


@register_fake("scale_shift_grad_sqnorm")
def _(x, dy, x_new=None, dy_new=None, *, mean=None, rstd=None, dim=-1):
    return _pair(x, x.shape[0], dtype=compute_dtype(x))


@register_fake("scale_shift_grad_dot")
def _(x, dy, x_new=None, dy_new=None, *, mean=None, rstd=None, dim=-1, v_scale, v_shift):
    return _pair(x, x.shape[0], dtype=compute_dtype(x))
