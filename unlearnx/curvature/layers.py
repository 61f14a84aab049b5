"""Per-sample gradients, squared and summed over samples, of the layers that are worth knowing.

Each rule gets the layer, its input x (N, ...), the gradient dy (N, ...) of the per-sample losses with respect to
its output, and the samples' weights w (N,) or None. It returns sum_i w_i g_i^2 for each of the layer's parameters,
or None where the layer's settings are not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from unlearnx.ops.linear_grad import linear_grad_diff

Squares = dict[str, Tensor]
Rule = Callable[[Any, Tensor, Tensor, "Tensor | None"], "Squares | None"]

ROWS_BYTES = 1 << 25  # per-sample gradients held at a time: they should not leave the cache by much


def _weighted_sum(squares: Tensor, w: Tensor | None) -> Tensor:
    return squares.sum(0) if w is None else torch.tensordot(w, squares, 1)


def _positions(t: Tensor) -> Tensor:
    """(N, ..., K) as (N, T, K)."""
    return t.reshape(t.shape[0], t[0, ..., 0].numel(), t.shape[-1])


def _sample_ranges(n: int, bytes_each: int) -> Iterator[slice]:
    step = max(1, ROWS_BYTES // max(bytes_each, 1))
    return (slice(i, i + step) for i in range(0, n, step))


def _linear(layer: Any, x: Tensor, dy: Tensor, w: Tensor | None) -> Squares:
    result = {}
    x, dy = _positions(x), _positions(dy)
    if x.shape[1] == 1:  # (dy_i x_i^T)^2 = dy_i^2 (x_i^2)^T: one product of squares
        squared = dy[:, 0].square()
        result["weight"] = (squared if w is None else squared * w[:, None]).T @ x[:, 0].square()
    else:
        total = torch.zeros_like(layer.weight)
        for s in _sample_ranges(len(x), total.numel() * total.element_size()):
            rows = linear_grad_diff(x[s], dy[s], reduction="none")
            total += _weighted_sum(rows.square_(), None if w is None else w[s])
        result["weight"] = total
    result["bias"] = _weighted_sum(dy.sum(1).square(), w)
    return result


def _convolution(layer: Any, x: Tensor, dy: Tensor, w: Tensor | None) -> Squares | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    total = torch.zeros_like(layer.weight)
    settings = (layer.stride, layer.padding, layer.dilation, False, [0] * len(layer.stride), layer.groups)
    for i in range(len(x)):
        _, row, _ = torch.ops.aten.convolution_backward(
            dy[i : i + 1], x[i : i + 1], layer.weight, None, *settings, [False, True, False]
        )
        total.addcmul_(row, row if w is None else row * w[i])
    return {"weight": total, "bias": _weighted_sum(dy.flatten(2).sum(2).square(), w)}


def _affine(normalised: Tensor, dy: Tensor, w: Tensor | None, shape: torch.Size, channel: int | None) -> Squares:
    """Squares for y = weight * normalised + bias; summed over all but the sample and the parameter's own axes."""
    products = {"weight": dy * normalised, "bias": dy}
    if channel is None:
        rows = {k: v.reshape(len(v), -1, *shape).sum(1) for k, v in products.items()}
    else:
        rows = {k: v.movedim(channel, 1).reshape(len(v), shape[0], -1).sum(2) for k, v in products.items()}
    return {k: _weighted_sum(v.square(), w) for k, v in rows.items()}


def _batch_norm(layer: Any, x: Tensor, dy: Tensor, w: Tensor | None) -> Squares:
    view = (1, -1, *[1] * (x.dim() - 2))
    normalised = (x - layer.running_mean.view(view)) * (layer.running_var + layer.eps).rsqrt().view(view)
    return _affine(normalised, dy, w, layer.running_mean.shape, channel=1)


def _layer_norm(layer: Any, x: Tensor, dy: Tensor, w: Tensor | None) -> Squares:
    return _affine(layer_norm(x, layer.normalized_shape, eps=layer.eps), dy, w, layer.weight.shape, channel=None)


def _group_norm(layer: Any, x: Tensor, dy: Tensor, w: Tensor | None) -> Squares:
    return _affine(group_norm(x, layer.num_groups, eps=layer.eps), dy, w, layer.weight.shape, channel=1)


def _embedding(layer: Any, x: Tensor, dy: Tensor, w: Tensor | None) -> Squares | None:
    if layer.max_norm is not None or layer.scale_grad_by_freq:
        return None
    n, tokens = len(x), layer.num_embeddings
    # A token that a sample repeats collects all its gradients before they are squared.
    sample = torch.arange(n, device=x.device).repeat_interleave(x[0].numel())
    keys, place = (sample * tokens + x.reshape(-1)).unique(return_inverse=True)
    rows = dy.new_zeros(len(keys), dy.shape[-1]).index_add_(0, place, dy.reshape(-1, dy.shape[-1])).square_()
    if w is not None:
        rows *= w[keys // tokens, None]
    total = dy.new_zeros(tokens, dy.shape[-1]).index_add_(0, keys % tokens, rows)
    if layer.padding_idx is not None:
        total[layer.padding_idx] = 0
    return {"weight": total}


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
}
