"""Layers as matrices: a weight and its bias as one matrix (O, I), their gradients as products of rows.

The gradient of sample i is ``sum_t dy[i, t] (outer) x[i, t]`` over its positions t. Of a convolution the rows x are the
patches that its window sees, with channels fastest; of a layer with a bias they end in a one, which is never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx._vectors import Vector
from unlearnx.curvature.contributions import (
    Contribution,
    ConvolutionWeight,
    EmbeddingWeight,
    LinearWeight,
    StoredGradients,
)
from unlearnx.ops._dtypes import compute_dtype

MOST_OUTPUTS = 4096  # that have a factor in common: one of a decoder's 50,000 tokens would take 10 GB, and an hour
ROW_BYTES = 1 << 24  # rows x that are made at a time: few enough for the CPU's caches, enough for fast products


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution: weight (O, C, *window), with its bias (O,) as a last column.

    Args:
        weight, bias: names of the parameters; None for no bias.
        shape: of the weight.
    """

    weight: str
    bias: str | None
    shape: torch.Size

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters in the matrix."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def stacked(self) -> tuple[int, ...]:
        """How many factors of outputs are side by side, as sizes of dimensions; none for a single one."""
        return ()

    @property
    def stacked_inputs(self) -> tuple[int, ...]:
        """The same for factors of inputs."""
        return ()

    @property
    def size(self) -> tuple[int, int]:
        """(O, I), the bias counted in I."""
        return self.shape[0], self.shape[1:].numel() + (self.bias is not None)

    def matrices(self, v: Vector) -> Tensor:
        """(K, O, I) from K vectors, of which `v` has a tensor (K, *shape) for each parameter."""
        matrix = v[self.weight].movedim(2, -1).flatten(2)
        return matrix if self.bias is None else torch.cat([matrix, v[self.bias].unsqueeze(2)], 2)

    def tensors(self, matrices: Tensor) -> Vector:
        """The inverse of :meth:`matrices`."""
        columns = matrices if self.bias is None else matrices[:, :, :-1]
        o, c, *window = self.shape
        weight = columns.reshape(-1, o, *window, c).movedim(-1, 2)
        return {self.weight: weight} if self.bias is None else {self.weight: weight, self.bias: matrices[:, :, -1]}

    def rows(self, contribution: Any) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The contribution's samples in parts: which, their x (n, T, I), and dy (n, T, O); x without the ones."""
        wide = compute_dtype(contribution.dy)
        if isinstance(contribution, LinearWeight):
            x, dy = (t.flatten(1, -2) if t.dim() > 2 else t.unsqueeze(1) for t in (contribution.x, contribution.dy))
            yield slice(0, len(x)), x.to(wide), dy.to(wide)
            return
        x, dy = (t.to(wide) for t in contribution.images())
        dy = dy.movedim(1, -1).flatten(1, 2)
        bytes_of_sample = dy.shape[1] * x.shape[1] * self.shape[2:].numel() * x.element_size()
        step = max(1, ROW_BYTES // bytes_of_sample)
        for start in range(0, len(x), step):
            s = slice(start, start + step)
            yield s, _patches(x[s], contribution), dy[s]


@dataclass(frozen=True)
class GroupedLayer(Layer):
    """A convolution in groups, which are convolutions side by side: for each a matrix (O / groups, I) of its own.

    Args:
        groups: how many there are.
    """

    groups: int

    @property
    def stacked(self) -> tuple[int, ...]:
        """(groups,)."""
        return (self.groups,)

    @property
    def stacked_inputs(self) -> tuple[int, ...]:
        """(groups,)."""
        return (self.groups,)

    @property
    def size(self) -> tuple[int, int]:
        """(O / groups, I)."""
        o, i = super().size
        return o // self.groups, i

    def matrices(self, v: Vector) -> Tensor:
        """(K, groups, O / groups, I)."""
        return super().matrices(v).unflatten(1, (self.groups, -1))

    def tensors(self, matrices: Tensor) -> Vector:
        """The inverse of :meth:`matrices`."""
        return super().tensors(matrices.flatten(1, 2))

    def rows(self, contribution: Any) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """As for :class:`Layer`, with x (groups, n, T, I) and dy (groups, n, T, O / groups)."""
        for s, x, dy in super().rows(contribution):
            x = x.unflatten(2, (-1, self.groups, self.shape[1])).permute(3, 0, 1, 2, 4).flatten(3)
            yield s, x, dy.unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class SplitLayer(Layer):
    """A layer with many outputs: blocks of as many each have a factor of their own, and that of the inputs in common.

    Args:
        blocks: how many there are; the last may end in outputs that do not exist, whose gradients are zero.
    """

    blocks: int

    @property
    def stacked(self) -> tuple[int, ...]:
        """(blocks,)."""
        return (self.blocks,)

    @property
    def size(self) -> tuple[int, int]:
        """(outputs of a block, I)."""
        o, i = super().size
        return -(-o // self.blocks), i

    @property
    def _missing(self) -> int:
        return self.blocks * self.size[0] - self.shape[0]

    def matrices(self, v: Vector) -> Tensor:
        """(K, blocks, outputs of a block, I)."""
        return F.pad(super().matrices(v), (0, 0, 0, self._missing)).unflatten(1, (self.blocks, -1))

    def tensors(self, matrices: Tensor) -> Vector:
        """The inverse of :meth:`matrices`."""
        return super().tensors(matrices.flatten(1, 2)[:, : self.shape[0]])

    def rows(self, contribution: Any) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """As for :class:`Layer`, with dy (blocks, n, T, outputs of a block)."""
        for s, x, dy in super().rows(contribution):
            yield s, x, F.pad(dy, (0, self._missing)).unflatten(2, (self.blocks, -1)).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class EmbeddingLayer(Layer):
    """An embedding (tokens, D), as the matrix (D, tokens) of a linear layer on one-hot rows."""

    @property
    def size(self) -> tuple[int, int]:
        """(D, tokens)."""
        return self.shape[1], self.shape[0]

    def matrices(self, v: Vector) -> Tensor:
        """(K, D, tokens) from (K, tokens, D)."""
        return v[self.weight].mT

    def tensors(self, matrices: Tensor) -> Vector:
        """The inverse of :meth:`matrices`."""
        return {self.weight: matrices.mT}


def layer_of(name: str, shape: torch.Size, bias: str | None, contribution: Contribution) -> Layer | None:
    """The layer of a weight with such contributions; None for one whose gradients have no Kronecker factors."""
    if isinstance(contribution, EmbeddingWeight):
        return EmbeddingLayer(name, None, shape)
    if isinstance(contribution, ConvolutionWeight) and contribution.settings["groups"] > 1:
        return GroupedLayer(name, bias, shape, contribution.settings["groups"])
    if not isinstance(contribution, (ConvolutionWeight, LinearWeight)):
        return None
    blocks = -(-shape[0] // MOST_OUTPUTS)
    return Layer(name, bias, shape) if blocks <= 1 else SplitLayer(name, bias, shape, blocks)


def is_its_bias(contribution: Any, bias: Contribution | None) -> bool:
    """Whether gradients of a bias are the sums of the output gradients of a weight, as where one layer has both."""
    if not isinstance(bias, StoredGradients) or not isinstance(contribution, (LinearWeight, ConvolutionWeight)):
        return False
    dy = contribution.dy.movedim(1, -1) if isinstance(contribution, ConvolutionWeight) else contribution.dy
    sums = dy.to(compute_dtype(dy)).flatten(1, -2).sum(1) if dy.dim() > 2 else dy
    return sums.shape == bias.values.shape and torch.allclose(sums.to(bias.values), bias.values, rtol=1e-3, atol=1e-6)


def _patches(x: Tensor, convolution: ConvolutionWeight) -> Tensor:
    """What the window of a convolution sees of images (n, C, H, W) at its T places: (n, T, window * C)."""
    kh, kw = convolution.window()
    (sh, sw), (ph, pw), (dh, dw) = (convolution.settings[key] for key in ("stride", "padding", "dilation"))
    padded = F.pad(x.movedim(1, -1), (0, 0, pw, pw, ph, ph)).contiguous()
    n, height, width, c = padded.shape
    rows, columns = (height - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    a, b, d, e = padded.stride()
    view = padded.as_strided((n, rows, columns, kh, kw, c), (a, b * sh, d * sw, b * dh, d * dw, e))
    return view.reshape(n, rows * columns, kh * kw * c)
