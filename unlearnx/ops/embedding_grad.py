"""Per-sample weight gradients of embeddings from their tokens and output gradients.

The gradient g_i of sample i, (V, D), has at row v the sum of ``dy[i, t]`` over its positions t with token v. With a
second pair the difference is ``d_i = g_i(x_new, dy_new) - g_i(x, dy)``; without one it is ``d_i = g_i``. All functions
take these arguments:

    x: tokens, (N, ...), int64 or int32.
    dy: gradients of the per-sample losses with respect to the embedded tokens, (N, ..., D).
    num_embeddings: V.
    x_new, dy_new: x and dy after the change, shaped like them; both or neither.
    padding_idx: token whose row has no gradient.

dy is float32, float64, bfloat16 or float16; sums are taken in float32 or better. All functions raise TypeError where a
dtype is another, ValueError where shapes or devices do not match, and, on the CPU, IndexError for tokens outside of
0 ... V - 1. On a GPU, where reading the tokens would wait for the device, such tokens are an assertion on the device,
as in ``torch.nn.Embedding``: the next call that waits raises RuntimeError, and the process cannot use the GPU any more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx.ops._call import call_past_autograd, register_fake
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._not_differentiable import not_differentiable

__all__ = ["embedding_grad_diff", "embedding_grad_dot", "embedding_grad_sq", "embedding_grad_sqnorm"]


def embedding_grad_diff(
    x: Tensor,
    dy: Tensor,
    num_embeddings: int,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    padding_idx: int | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Per-sample weight gradients (or differences) of an embedding.

    Args:
        x, dy, num_embeddings, x_new, dy_new, padding_idx: see the module's docstring.
        weight: factors w_i of the samples, (N,).
        reduction: ``"sum"`` for ``sum_i w_i d_i``, ``"none"`` for each ``w_i d_i``.

    Returns:
        (V, D), or (N, V, D) with ``reduction="none"``, in the dtype of ``dy``. Not differentiable.

    Example:
        >>> tokens, dy = torch.tensor([[1, 2, 1]]), torch.ones(1, 3, 4)
        >>> embedding_grad_diff(tokens, dy, 5)[:, 0]  # five tokens; the first of four features
        tensor([0., 2., 1., 0., 0.])
    """
    return call_past_autograd(
        torch.ops.unlearnx.embedding_grad_diff,
        x,
        dy,
        num_embeddings,
        x_new,
        dy_new,
        weight=weight,
        padding_idx=padding_idx,
        reduction=reduction,
    )


def embedding_grad_sq(
    x: Tensor,
    dy: Tensor,
    num_embeddings: int,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    padding_idx: int | None = None,
) -> Tensor:
    """Squared per-sample weight gradients (or differences) of an embedding, summed over samples.

    Where a token occurs several times in a sample, its gradients are added before they are squared.

    Args:
        x, dy, num_embeddings, x_new, dy_new, padding_idx: see the module's docstring.
        weight: factors w_i of the samples, (N,).

    Returns:
        ``sum_i w_i d_i^2`` as (V, D), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> tokens, dy = torch.tensor([[1, 2, 1], [0, 0, 3]]), torch.ones(2, 3, 4)
        >>> embedding_grad_sq(tokens, dy, 5, padding_idx=0)[:, 0]
        tensor([0., 4., 1., 1., 0.])
    """
    return call_past_autograd(
        torch.ops.unlearnx.embedding_grad_sq,
        x,
        dy,
        num_embeddings,
        x_new,
        dy_new,
        weight=weight,
        padding_idx=padding_idx,
    )


def embedding_grad_sqnorm(
    x: Tensor,
    dy: Tensor,
    num_embeddings: int,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    padding_idx: int | None = None,
) -> Tensor:
    """Squared norms ``||d_i||^2`` of per-sample weight gradients (or differences) of an embedding.

    Args:
        x, dy, num_embeddings, x_new, dy_new, padding_idx: see the module's docstring.

    Returns:
        (N,), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> tokens, dy = torch.tensor([[1, 2, 1], [0, 0, 3]]), torch.ones(2, 3, 4)
        >>> embedding_grad_sqnorm(tokens, dy, 5)
        tensor([20., 20.])
    """
    return call_past_autograd(
        torch.ops.unlearnx.embedding_grad_sqnorm, x, dy, num_embeddings, x_new, dy_new, padding_idx=padding_idx
    )


def embedding_grad_dot(
    x: Tensor,
    dy: Tensor,
    num_embeddings: int,
    x_new: Tensor | None = None,
    dy_new: Tensor | None = None,
    *,
    padding_idx: int | None = None,
    v: Tensor,
) -> Tensor:
    """Inner products ``<d_i, v>`` of per-sample weight gradients (or differences) of an embedding with a direction.

    Args:
        x, dy, num_embeddings, x_new, dy_new, padding_idx: see the module's docstring.
        v: direction, (V, D).

    Returns:
        (N,), in float32 (float64 for float64 inputs). Not differentiable.

    Example:
        >>> tokens, dy, v = torch.tensor([[1, 2, 1]]), torch.ones(1, 3, 4), torch.arange(20.0).view(5, 4)
        >>> embedding_grad_dot(tokens, dy, 5, v=v)  # 2 * (4 + 5 + 6 + 7) + (8 + 9 + 10 + 11)
        tensor([82.])
    """
    return call_past_autograd(
        torch.ops.unlearnx.embedding_grad_dot, x, dy, num_embeddings, x_new, dy_new, padding_idx=padding_idx, v=v
    )


not_differentiable("embedding_grad_diff", "embedding_grad_sq", "embedding_grad_sqnorm", "embedding_grad_dot")


@register_fake("embedding_grad_diff")
def _(x, dy, num_embeddings, x_new=None, dy_new=None, *, weight=None, padding_idx=None, reduction="sum"):
    shape = (num_embeddings, dy.shape[-1])
    return dy.new_empty(shape if reduction == "sum" else (x.shape[0], *shape))


@register_fake("embedding_grad_sq")
def _(x, dy, num_embeddings, x_new=None, dy_new=None, *, weight=None, padding_idx=None):
    return dy.new_empty((num_embeddings, dy.shape[-1]), dtype=compute_dtype(dy))


@register_fake("embedding_grad_sqnorm")
def _(x, dy, num_embeddings, x_new=None, dy_new=None, *, padding_idx=None):
    return dy.new_empty(x.shape[0], dtype=compute_dtype(dy))


@register_fake("embedding_grad_dot")
def _(x, dy, num_embeddings, x_new=None, dy_new=None, *, padding_idx=None, v):
    return dy.new_empty(x.shape[0], dtype=compute_dtype(dy))
