"""What layers contribute to the per-sample gradients of their parameters.

A contribution holds the tensors of one forward and backward pass from which the per-sample gradients g_i of one
parameter follow, for example the inputs and output gradients of a linear layer. Sums, squares and inner products of
the g_i are computed from these tensors without storing the g_i. Where a parameter is used several times, the
contributions of all uses are joined first, because the square of a sum is not the sum of the squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops.conv2d_grad import conv2d_grad_diff, conv2d_grad_dot, conv2d_grad_sq
from unlearnx.ops.embedding_grad import embedding_grad_diff, embedding_grad_dot, embedding_grad_sq
from unlearnx.ops.linear_grad import linear_grad_diff, linear_grad_dot, linear_grad_sq

# Inner products with K directions go through all positions of a sample K times, or store its gradient and use it K
# times. Storing saves (K - 1) * positions; from this number on it was measured to be faster.
MIN_SHARED_POSITIONS = 150
CACHED_GRADIENT_BYTES = 8 << 20  # gradients stored at a time for this: few enough that they stay in the CPU's caches


class Contribution:
    """The part of one parameter's per-sample gradients that comes from some of its uses in the model."""

    @classmethod
    def join(cls, parts: Sequence[Any]) -> Any | None:
        """The sum of contributions that are all of this class, as one; None where they cannot be joined."""
        return parts[0] if len(parts) == 1 else None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(vars(self)["dy"])

    def take(self, s: slice) -> Any:
        """The contribution of the samples in a slice."""
        own: Any = self
        return replace(own, x=own.x[s], dy=own.dy[s])

    def form(self) -> tuple[Any, ...]:
        """Class and shapes: only contributions of equal form can be subtracted by :meth:`per_sample`."""
        return type(self), *(v.shape for v in vars(self).values() if isinstance(v, Tensor))

    def squares(self, weight: Tensor | None) -> Tensor:
        """``sum_i w_i g_i^2``, shaped like the parameter."""
        raise NotImplementedError

    def weighted_sum(self, weight: Tensor) -> Tensor:
        """``sum_i w_i g_i``, shaped like the parameter."""
        raise NotImplementedError

    def dots(self, v: Tensor) -> Tensor:
        """All inner products ``<g_i, v_k>``, (K, N), for directions v (K, *shape) in float32 or float64."""
        raise NotImplementedError

    def per_sample(self, new: Any | None = None) -> Tensor:
        """Each g_i, or each difference g_i(new) - g_i, stored as (N, *shape)."""
        raise NotImplementedError


@dataclass
class StoredGradients(Contribution):
    """Per-sample gradients themselves, (N, *shape): of small parameters, such as biases, scales and shifts."""

    values: Tensor

    @classmethod
    def join(cls, parts: Sequence[StoredGradients]) -> StoredGradients:
        return cls(torch.stack([p.values for p in parts]).sum(0)) if len(parts) > 1 else parts[0]

    @property
    def samples(self) -> int:
        return len(self.values)

    def take(self, s: slice) -> StoredGradients:
        return StoredGradients(self.values[s])

    def squares(self, weight: Tensor | None) -> Tensor:
        squares = self.values.square()
        if weight is not None:
            return torch.tensordot(weight.to(squares), squares, 1)
        return squares[0] if len(squares) == 1 else squares.sum(0)

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return torch.tensordot(weight.to(self.values), self.values, 1)

    def dots(self, v: Tensor) -> Tensor:
        return v.reshape(len(v), -1) @ self.values.reshape(len(self.values), -1).to(v.dtype).T

    def per_sample(self, new: StoredGradients | None = None) -> Tensor:
        return self.values if new is None else new.values - self.values


def position_sums(dy: Tensor) -> Tensor:
    """Sum (N, ..., O) over its positions to (N, O), in float32 or float64."""
    wide = compute_dtype(dy)
    return dy.to(wide) if dy.dim() == 2 else dy.sum(tuple(range(1, dy.dim() - 1)), dtype=wide)


def _positions(t: Tensor) -> Tensor:
    """(N, ..., K) as (N, T, K)."""
    return t.reshape(t.shape[0], t[0, ..., 0].numel(), t.shape[-1])


def _storing_is_cheaper(x: Tensor, positions: int, v: Tensor) -> bool:
    """Whether storing per-sample gradients is faster than going through all positions once per direction v_k."""
    return x.device.type == "cpu" and x.dtype == v.dtype and (len(v) - 1) * positions >= MIN_SHARED_POSITIONS


def _dots_by_storing(layer: LinearWeight | ConvolutionWeight, v: Tensor) -> Tensor:
    n = max(1, CACHED_GRADIENT_BYTES // (v[0].numel() * v.element_size()))
    parts = [replace(layer, x=x, dy=dy) for x, dy in zip(layer.x.split(n), layer.dy.split(n), strict=True)]
    return torch.cat([StoredGradients(part.per_sample()).dots(v) for part in parts], 1)


@dataclass
class LinearWeight(Contribution):
    """The weight of a linear layer: x (N, ..., I), dy (N, ..., O)."""

    x: Tensor
    dy: Tensor

    @classmethod
    def join(cls, parts: Sequence[LinearWeight]) -> LinearWeight:
        if len(parts) == 1:
            return parts[0]
        # The gradient is a sum over positions, so a second use only adds positions.
        return cls(torch.cat([_positions(p.x) for p in parts], 1), torch.cat([_positions(p.dy) for p in parts], 1))

    def squares(self, weight: Tensor | None) -> Tensor:
        return linear_grad_sq(self.x, self.dy, weight=weight)

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return linear_grad_diff(self.x, self.dy, weight=weight)

    def dots(self, v: Tensor) -> Tensor:
        if _storing_is_cheaper(self.x, self.x[0, ..., 0].numel(), v):
            return _dots_by_storing(self, v)
        x, dy = self.x.contiguous(), self.dy.contiguous()  # copied once, not once per direction
        return torch.stack([linear_grad_dot(x, dy, v=direction) for direction in v])

    def per_sample(self, new: LinearWeight | None = None) -> Tensor:
        pair = (None, None) if new is None else (new.x, new.dy)
        return linear_grad_diff(self.x, self.dy, *pair, reduction="none")


@dataclass
class ConvolutionWeight(Contribution):
    """The weight of a 1-d or 2-d convolution: x (N, C, H, W), dy (N, O, H', W'); in 1-d there is no H."""

    x: Tensor
    dy: Tensor
    shape: torch.Size  # of the weight
    settings: dict[str, Any]

    def images(self) -> tuple[Tensor, Tensor]:
        return (self.x, self.dy) if self.x.dim() == 4 else (self.x.unsqueeze(2), self.dy.unsqueeze(2))

    def window(self) -> tuple[int, int]:
        return (1, *self.shape[2:])[-2:]

    def squares(self, weight: Tensor | None) -> Tensor:
        return conv2d_grad_sq(*self.images(), self.window(), weight=weight, **self.settings).view(self.shape)

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return conv2d_grad_diff(*self.images(), self.window(), weight=weight, **self.settings).view(self.shape)

    def dots(self, v: Tensor) -> Tensor:
        if _storing_is_cheaper(self.x, self.dy[0, 0].numel(), v):
            return _dots_by_storing(self, v)
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in self.images())  # copied once
        images = v if self.x.dim() == 4 else v.unsqueeze(3)
        return torch.stack(
            [conv2d_grad_dot(x, dy, self.window(), v=direction, **self.settings) for direction in images]
        )

    def per_sample(self, new: ConvolutionWeight | None = None) -> Tensor:
        pair = (None, None) if new is None else new.images()
        per_sample = conv2d_grad_diff(*self.images(), self.window(), *pair, reduction="none", **self.settings)
        return per_sample if self.x.dim() == 4 else per_sample.squeeze(3)


@dataclass
class EmbeddingWeight(Contribution):
    """The weight of an embedding: tokens x (N, ...), dy (N, ..., D); the padding may be counted from the end."""

    x: Tensor
    dy: Tensor
    tokens: int
    padding_idx: int | None

    def __post_init__(self) -> None:
        if self.padding_idx is not None:
            self.padding_idx %= self.tokens

    @classmethod
    def join(cls, parts: Sequence[EmbeddingWeight]) -> EmbeddingWeight | None:
        first = parts[0]
        if len(parts) == 1:
            return first
        if any(p.padding_idx != first.padding_idx for p in parts):
            return None
        x = torch.cat([p.x.reshape(len(p.x), -1) for p in parts], 1)
        return cls(x, torch.cat([_positions(p.dy) for p in parts], 1), first.tokens, first.padding_idx)

    def squares(self, weight: Tensor | None) -> Tensor:
        return embedding_grad_sq(self.x, self.dy, self.tokens, weight=weight, padding_idx=self.padding_idx)

    def weighted_sum(self, weight: Tensor) -> Tensor:
        return embedding_grad_diff(self.x, self.dy, self.tokens, weight=weight, padding_idx=self.padding_idx)

    def dots(self, v: Tensor) -> Tensor:
        settings: dict[str, Any] = {"padding_idx": self.padding_idx}
        return torch.stack(
            [embedding_grad_dot(self.x, self.dy, self.tokens, v=direction, **settings) for direction in v]
        )

    def per_sample(self, new: EmbeddingWeight | None = None) -> Tensor:
        pair = (None, None) if new is None else (new.x, new.dy)
        return embedding_grad_diff(self.x, self.dy, self.tokens, *pair, padding_idx=self.padding_idx, reduction="none")
