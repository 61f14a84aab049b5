"""What layers contribute to the per-sample gradients of their parameters.

A contribution holds what one use of a parameter left behind in a forward and a backward pass: enough to work out its
per-sample gradients g_i, or differences d_i = g_i(new) - g_i(old) with the contribution of a second pass, without
storing them. Contributions of several uses are joined before anything is squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unlearnx.ops.conv2d_grad import conv2d_grad_diff, conv2d_grad_dot, conv2d_grad_sq
from unlearnx.ops.embedding_grad import embedding_grad_diff, embedding_grad_dot, embedding_grad_sq
from unlearnx.ops.linear_grad import linear_grad_diff, linear_grad_dot, linear_grad_sq

CACHED = 8 << 20  # bytes of per-sample gradients at a time where directions share them: the caches hold them
SAVED = 150  # positions a sample that sharing has to save before it pays for writing them


class Contribution:
    """The part of a parameter's per-sample gradients that some uses of it make up."""

    @classmethod
    def join(cls, parts: Sequence[Any]) -> Any | None:
        """One contribution for all of a kind; None where such uses cannot be joined."""
        return parts[0] if len(parts) == 1 else None

    def form(self) -> tuple[Any, ...]:
        """Kind and sizes: contributions of equal form can be a pair."""
        return type(self), *(v.shape for v in vars(self).values() if isinstance(v, Tensor))

    def squares(self, weight: Tensor | None) -> Tensor:
        """``sum_i w_i g_i^2``, shaped like the parameter."""
        raise NotImplementedError

    def total(self, weight: Tensor) -> Tensor:
        """``sum_i w_i g_i``, shaped like the parameter."""
        raise NotImplementedError

    def dots(self, v: Tensor) -> Tensor:
        """Every ``<g_i, v_k>``, (K, N), for directions v (K, *shape) in float32 or wider."""
        raise NotImplementedError

    def rows(self, new: Any | None = None) -> Tensor:
        """Every g_i, or every g_i(new) - g_i, (N, *shape)."""
        raise NotImplementedError


def join(parts: Sequence[Contribution]) -> Contribution | None:
    """All uses of a parameter as one; None where they are of several kinds or cannot be joined."""
    kind = type(parts[0])
    return kind.join(parts) if all(type(p) is kind for p in parts) else None


@dataclass
class Rows(Contribution):
    """Small parameters, whose per-sample gradients may as well be stored: biases, scales and shifts; (N, *shape)."""

    values: Tensor

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        return cls(torch.stack([p.values for p in parts]).sum(0)) if len(parts) > 1 else parts[0]

    def squares(self, weight: Tensor | None) -> Tensor:
        squares = self.values.square()
        return squares.sum(0) if weight is None else torch.tensordot(weight.to(squares), squares, 1)

    def total(self, weight: Tensor) -> Tensor:
        return torch.tensordot(weight.to(self.values), self.values, 1)

    def dots(self, v: Tensor) -> Tensor:
        return v.flatten(1) @ self.values.flatten(1).to(v.dtype).T

    def rows(self, new: Rows | None = None) -> Tensor:
        return self.values if new is None else new.values - self.values


def _positions(t: Tensor) -> Tensor:
    """(N, ..., K) as (N, T, K)."""
    return t.reshape(t.shape[0], t[0, ..., 0].numel(), t.shape[-1])


def _gradients_pay(x: Tensor, positions: int, v: Tensor) -> bool:
    """Whether to make the gradients for all directions v is less work than to go through the positions for each."""
    return x.device.type == "cpu" and x.dtype == v.dtype and (len(v) - 1) * positions >= SAVED


def _dots_of_gradients(layer: LinearWeight | ConvolutionWeight, v: Tensor) -> Tensor:
    n = max(1, CACHED // (v[0].numel() * v.element_size()))
    parts = [replace(layer, x=x, dy=dy) for x, dy in zip(layer.x.split(n), layer.dy.split(n), strict=True)]
    return torch.cat([Rows(part.rows()).dots(v) for part in parts], 1)


@dataclass
class LinearWeight(Contribution):
    """The weight of a linear layer: x (N, ..., I), dy (N, ..., O)."""

    x: Tensor
    dy: Tensor

    @classmethod
    def join(cls, parts: Sequence[LinearWeight]) -> LinearWeight:
        if len(parts) == 1:
            return parts[0]
        # Sums over positions: another use is so many positions more.
        return cls(torch.cat([_positions(p.x) for p in parts], 1), torch.cat([_positions(p.dy) for p in parts], 1))

    def squares(self, weight: Tensor | None) -> Tensor:
        return linear_grad_sq(self.x, self.dy, weight=weight)

    def total(self, weight: Tensor) -> Tensor:
        return linear_grad_diff(self.x, self.dy, weight=weight)

    def dots(self, v: Tensor) -> Tensor:
        if _gradients_pay(self.x, self.x[0, ..., 0].numel(), v):
            return _dots_of_gradients(self, v)
        x, dy = self.x.contiguous(), self.dy.contiguous()  # once for all directions
        return torch.stack([linear_grad_dot(x, dy, v=direction) for direction in v])

    def rows(self, new: LinearWeight | None = None) -> Tensor:
        pair = (None, None) if new is None else (new.x, new.dy)
        return linear_grad_diff(self.x, self.dy, *pair, reduction="none")


@dataclass
class ConvolutionWeight(Contribution):
    """The weight of a 1-d or 2-d convolution: x (N, C, H, W), dy (N, O, H', W'); without H in one dimension."""

    x: Tensor
    dy: Tensor
    shape: torch.Size  # of the weight
    settings: dict[str, Any]

    def _images(self) -> tuple[Tensor, Tensor]:
        return (self.x, self.dy) if self.x.dim() == 4 else (self.x.unsqueeze(2), self.dy.unsqueeze(2))

    def _window(self) -> tuple[int, int]:
        return (1, *self.shape[2:])[-2:]

    def squares(self, weight: Tensor | None) -> Tensor:
        return conv2d_grad_sq(*self._images(), self._window(), weight=weight, **self.settings).view(self.shape)

    def total(self, weight: Tensor) -> Tensor:
        return conv2d_grad_diff(*self._images(), self._window(), weight=weight, **self.settings).view(self.shape)

    def dots(self, v: Tensor) -> Tensor:
        if _gradients_pay(self.x, self.dy[0, 0].numel(), v):
            return _dots_of_gradients(self, v)
        x, dy = (t.contiguous(memory_format=torch.channels_last) for t in self._images())  # once for all directions
        images = v if self.x.dim() == 4 else v.unsqueeze(3)
        return torch.stack(
            [conv2d_grad_dot(x, dy, self._window(), v=direction, **self.settings) for direction in images]
        )

    def rows(self, new: ConvolutionWeight | None = None) -> Tensor:
        pair = (None, None) if new is None else new._images()
        rows = conv2d_grad_diff(*self._images(), self._window(), *pair, reduction="none", **self.settings)
        return rows if self.x.dim() == 4 else rows.squeeze(3)


@dataclass
class EmbeddingWeight(Contribution):
    """The weight of an embedding: tokens x (N, ...), dy (N, ..., D)."""

    x: Tensor
    dy: Tensor
    tokens: int
    padding_idx: int | None

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

    def total(self, weight: Tensor) -> Tensor:
        return embedding_grad_diff(self.x, self.dy, self.tokens, weight=weight, padding_idx=self.padding_idx)

    def dots(self, v: Tensor) -> Tensor:
        settings: dict[str, Any] = {"padding_idx": self.padding_idx}
        return torch.stack(
            [embedding_grad_dot(self.x, self.dy, self.tokens, v=direction, **settings) for direction in v]
        )

    def rows(self, new: EmbeddingWeight | None = None) -> Tensor:
        pair = (None, None) if new is None else (new.x, new.dy)
        return embedding_grad_diff(self.x, self.dy, self.tokens, *pair, padding_idx=self.padding_idx, reduction="none")
