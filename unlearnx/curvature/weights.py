"""Tensors that are made of parameters alone, and are so the same for all samples: how their gradients become theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.composed import Pulled, RowBlocks, Viewed
from unlearnx.curvature.contributions import Contribution, EmbeddingWeight, LinearWeight, StoredGradients

CASTS = {Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as}


class Weight:
    """A parameter, or what functions made of parameters.

    Attributes:
        tensor: as the model has it, which does not require gradients.
        graph: the same as a function of :attr:`leaves`.
        leaves: the parameters it is made of, by name, requiring gradients.
    """

    tensor: Tensor
    graph: Tensor
    leaves: dict[str, Tensor]

    def pulled(self, contribution: Contribution) -> Iterator[tuple[str, Contribution]]:
        """What a contribution to the gradients of this tensor is to those of the parameters."""
        raise NotImplementedError


class Parameter(Weight):
    """A parameter of the model."""

    def __init__(self, name: str, tensor: Tensor):
        self.tensor, self.graph = tensor, tensor.detach().requires_grad_(tensor.is_floating_point())
        self.leaves = {name: self.graph}

    def pulled(self, contribution: Contribution) -> Iterator[tuple[str, Contribution]]:
        yield from ((name, contribution) for name in self.leaves)


class Derived(Weight):
    """The result of a function of weights and constants.

    Args:
        graph: the result.
        function, args, kwargs: how it was computed.
        weights: those among the arguments.
    """

    def __init__(
        self,
        graph: Tensor,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        weights: list[Weight],
    ):
        self.tensor, self.graph, self.function = graph.detach(), graph, function
        self.leaves = {name: leaf for w in weights for name, leaf in w.leaves.items()}
        self._base = weights[0] if len(weights) == 1 else None
        self._picked = _embedded_tokens(function, args, kwargs)

    def pulled(self, contribution: Contribution) -> Iterator[tuple[str, Contribution]]:
        same = None if self._base is None else self._of_base(self._base.tensor, contribution)
        if self._base is not None and same is not None:
            yield from self._base.pulled(same)
            return
        for name, leaf in self.leaves.items():
            if isinstance(contribution, StoredGradients):
                yield name, StoredGradients(self._to(leaf, contribution.values))
            else:
                yield name, Pulled(contribution, leaf.shape, partial(self._to, leaf))

    def _of_base(self, base: Tensor, contribution: Contribution) -> Contribution | None:
        """The contribution to the only weight that this one was made of, where it takes no computation."""
        own = self.tensor
        if self.function in CASTS and own.shape == base.shape:
            return contribution
        if self._picked is not None:
            tokens, padding_idx = self._picked
            rows = contribution.per_sample().flatten(1, -2) if tokens.dim() else contribution.per_sample()[:, None]
            tokens = tokens.reshape(1, -1).expand(len(rows), -1)
            return EmbeddingWeight(tokens, rows, len(base), padding_idx)
        if own.untyped_storage().data_ptr() != base.untyped_storage().data_ptr() or own.dtype != base.dtype:
            return None
        offset = int(own.storage_offset() - base.storage_offset())
        if offset == 0 and own.shape == base.shape and own.stride() == base.stride():
            return contribution
        if offset == 0 and own.numel() == base.numel() and own.is_contiguous() and base.is_contiguous():
            if isinstance(contribution, StoredGradients):
                return StoredGradients(contribution.values.reshape(-1, *base.shape))
            return Viewed(contribution, own.shape, base.shape)
        if own.dim() == 2 and offset == 0 and own.shape == base.shape[::-1] and own.stride() == base.stride()[::-1]:
            return LinearWeight(contribution.dy, contribution.x) if isinstance(contribution, LinearWeight) else None
        rows_apart = base.stride(0) if base.dim() else 0
        if own.dim() > 1 and own.shape[1:] == base.shape[1:] and own.stride() == base.stride() and rows_apart:
            start, rest = divmod(offset, rows_apart)
            if rest == 0 and not isinstance(contribution, StoredGradients):
                return RowBlocks({(start, start + len(own)): contribution}, base.shape)
        if rows_apart and own.shape == base.shape[1:] and own.stride() == base.stride()[1:]:  # a single row
            row, rest = divmod(offset, rows_apart)
            if rest == 0:
                return RowBlocks({(row, row + 1): _unsqueezed(contribution, own.shape)}, base.shape)
        return None

    def _to(self, leaf: Tensor, rows: Tensor) -> Tensor:
        """Gradients (N, *shape) with respect to a parameter, from those with respect to this tensor."""
        given = rows.to(self.graph.dtype)
        (pulled,) = torch.autograd.grad(self.graph, leaf, given, retain_graph=True, is_grads_batched=True)
        return pulled.to(rows.dtype)


def _unsqueezed(contribution: Contribution, shape: torch.Size) -> Contribution:
    """That to a tensor of this shape, with a dimension of size 1 before the others."""
    if isinstance(contribution, StoredGradients):
        return StoredGradients(contribution.values.unsqueeze(1))
    return Viewed(contribution, shape, torch.Size([1, *shape]))


def _embedded_tokens(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, int | None] | None:
    """The tokens of an embedding that is the same for all samples, as of positions."""
    if function is not F.embedding or kwargs.get("scale_grad_by_freq") or kwargs.get("max_norm"):
        return None
    if len(args) < 2 or any(args[3:]):
        return None
    return args[0], args[2] if len(args) > 2 else kwargs.get("padding_idx")
