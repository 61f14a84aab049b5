"""Per-sample weight gradients of 2-d convolutions from their inputs and output gradients.

The gradient g_i of sample i has the shape of the weight, (O, C / groups, kh, kw). With a second pair the difference is
``d_i = g_i(x_new, dy_new) - g_i(x, dy)``; without one it is ``d_i = g_i``. The unfolded input is never stored. All
functions take these arguments:

    x: inputs of the layer, (N, C, H, W).
    dy: gradients of the per-sample losses with respect to its outputs, (N, O, H', W').
    kernel_size, stride, padding, dilation, groups: as for ``conv2d``; integers, or pairs (vertical, horizontal).
    x_new, dy_new: x and dy after the change, shaped like them; both or neither.

Tensors are float32, float64, bfloat16 or float16; sums are taken in float32 or better. Tensors in channels-last memory
order are read as they are, others are copied into that order first. All functions raise TypeError where a tensor is not
floating or dtypes differ, and ValueError where shapes, settings or devices do not match.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx.ops._call import call_past_autograd, register_fake
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._not_differentiable import not_differentiable

__all__ = ["conv2d_grad_diff", "conv2d_grad_dot", "conv2d_grad_sq", "conv2d_grad_sqnorm"]

Size = int | tuple[int, int]


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def conv2d_grad_diff(
    x: Tensor,
    dy: Tensor,
    kernel_size: Size,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    reduction: str = "sum",
) -> Tensor:
    """Per-sample weight gradients (or differences) of a convolution.

    Args:
        x, dy, kernel_size, x_new, dy_new, stride, padding, dilation, groups: see the module's docstring.
        weight: factors w_i of the samples, (N,).
        reduction: ``"sum"`` for ``sum_i w_i d_i``, ``"none"`` for each ``w_i d_i``.

    Returns:
        (O, C / groups, kh, kw), or (N, O, C / groups, kh, kw) with channels fastest in memory for
        ``reduction="none"``, in the dtype of ``x``. Not differentiable.

    Example:
        >>> conv, x, dy = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
        >>> conv(x).backward(dy)
        >>> torch.allclose(conv2d_grad_diff(x, dy, 3, padding=1), conv.weight.grad, atol=1e-4)
        True
    """
    return call_past_autograd(
        torch.ops.unlearnx.conv2d_grad_diff,
        x,
        dy,
        _pair(kernel_size),
        x_new,
        dy_new,
        weight=weight,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
        reduction=reduction,
    )


def conv2d_grad_sq(
    x: Tensor,
    dy: Tensor,
    kernel_size: Size,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Squared per-sample weight gradients (or differences) of a convolution, summed over samples.

    Args:
        x, dy, kernel_size, x_new, dy_new, stride, padding, dilation, groups: see the module's docstring.
        weight: factors w_i of the samples, (N,).

    Returns:
        ``sum_i w_i d_i^2`` as (O, C / groups, kh, kw), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x, dy = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
        >>> every = conv2d_grad_diff(x, dy, 3, padding=1, reduction="none")  # (2, 4, 3, 3, 3), never stored by _sq
        >>> torch.allclose(conv2d_grad_sq(x, dy, 3, padding=1), every.square().sum(0), rtol=1e-4)
        True
    """
    return call_past_autograd(
        torch.ops.unlearnx.conv2d_grad_sq,
        x,
        dy,
        _pair(kernel_size),
        x_new,
        dy_new,
        weight=weight,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
    )


def conv2d_grad_sqnorm(
    x: Tensor,
    dy: Tensor,
    kernel_size: Size,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Squared norms ``||d_i||^2`` of per-sample weight gradients (or differences) of a convolution.

    Args:
        x, dy, kernel_size, x_new, dy_new, stride, padding, dilation, groups: see the module's docstring.

    Returns:
        (N,), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x, dy = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 3, 3)
        >>> conv2d_grad_sqnorm(x, dy, (3, 3), stride=2, groups=2).shape
        torch.Size([2])
    """
    return call_past_autograd(
        torch.ops.unlearnx.conv2d_grad_sqnorm,
        x,
        dy,
        _pair(kernel_size),
        x_new,
        dy_new,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
    )


def conv2d_grad_dot(
    x: Tensor,
    dy: Tensor,
    kernel_size: Size,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    v: Tensor,
) -> Tensor:
    """Inner products ``<d_i, v>`` of per-sample weight gradients (or differences) of a convolution with a direction.

    Args:
        x, dy, kernel_size, x_new, dy_new, stride, padding, dilation, groups: see the module's docstring.
        v: direction, (O, C / groups, kh, kw).

    Returns:
        (N,), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> x, dy, v = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(4, 3, 3, 3)
        >>> along = (dy * nn.functional.conv2d(x, v, padding=1)).sum((1, 2, 3))
        >>> torch.allclose(conv2d_grad_dot(x, dy, 3, padding=1, v=v), along, atol=1e-3)
        True
    """
    return call_past_autograd(
        torch.ops.unlearnx.conv2d_grad_dot,
        x,
        dy,
        _pair(kernel_size),
        x_new,
        dy_new,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
        v=v,
    )


def _shape(x, dy, kernel_size, groups):
    return dy.shape[1], x.shape[1] // groups, *kernel_size


not_differentiable("conv2d_grad_diff", "conv2d_grad_sq", "conv2d_grad_sqnorm", "conv2d_grad_dot")


@register_fake("conv2d_grad_diff")
def _(
    x,
    dy,
    kernel_size,
    x_new=None,
    dy_new=None,
    *,
    weight=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    reduction="sum",
):
    outputs, channels, *window = _shape(x, dy, kernel_size, groups)
    if reduction == "sum":
        return x.new_empty(outputs, channels, *window)
    return x.new_empty(x.shape[0], outputs, *window, channels).movedim(-1, 2)


@register_fake("conv2d_grad_sq")
def _(x, dy, kernel_size, x_new=None, dy_new=None, *, weight=None, stride=1, padding=0, dilation=1, groups=1):
    return x.new_empty(_shape(x, dy, kernel_size, groups), dtype=compute_dtype(x))


@register_fake("conv2d_grad_sqnorm")
def _(x, dy, kernel_size, x_new=None, dy_new=None, *, stride=1, padding=0, dilation=1, groups=1):
    return x.new_empty(x.shape[0], dtype=compute_dtype(x))


@register_fake("conv2d_grad_dot")
def _(x, dy, kernel_size, x_new=None, dy_new=None, *, stride=1, padding=0, dilation=1, groups=1, v):
    return x.new_empty(x.shape[0], dtype=compute_dtype(x))
