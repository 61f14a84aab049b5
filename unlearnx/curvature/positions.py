"""Where a loss of several positions a sample has its labels, and how it sums up their losses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unlearnx._batches import scores
from unlearnx._labels import class_axis
from unlearnx._losses import Loss, torch_loss
from unlearnx.losses import causal_lm, cross_entropy

DRAWN_AT_ONCE = 1 << 22  # probabilities that are summed up in float64 at a time


@dataclass(frozen=True)
class Positions:
    """The positions of a loss that is a sum or a mean over them.

    Attributes:
        shifted: whether the scores at a position are for the label of the next one, as in causal language models.
        averaged: whether a sample's loss is the mean over its labels, not their sum.
    """

    shifted: bool
    averaged: bool

    @classmethod
    def of(cls, loss_fn: Loss) -> Positions | None:
        """Those of torch's cross-entropy and of the losses of unlearnx; None for a loss that may do anything."""
        known = torch_loss(loss_fn)
        if known is not None:
            return cls(shifted=False, averaged=known[1].get("reduction", "mean") == "mean")
        settings: dict[str, Any] = {}
        while isinstance(loss_fn, partial):
            settings = {**loss_fn.keywords, **settings}
            loss_fn = loss_fn.func
        if loss_fn is causal_lm:
            return cls(shifted=True, averaged=settings.get("per", "sample") == "sample")
        return cls(shifted=False, averaged=True) if loss_fn is cross_entropy else None

    def probabilities(self, output: Any, y: Tensor) -> Tensor:
        """(N, positions, classes) for the labels of :meth:`labels`, of an output and labels that the loss takes."""
        values = scores(output)
        axis = class_axis(output, y) if not self.shifted else values.dim() - 1
        assert axis is not None, "the loss takes these labels"
        values = values.movedim(axis, -1)
        values = (values[:, :-1] if self.shifted else values).flatten(1, -2)
        return values.softmax(-1, dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)

    def labels(self, y: Tensor) -> Tensor:
        """The labels that are predicted, (N, positions)."""
        return (y[:, 1:] if self.shifted else y).flatten(1)

    def with_labels(self, y: Tensor, labels: Tensor) -> Tensor:
        """Labels of y's shape with these in the place of :meth:`labels`."""
        if self.shifted:
            return torch.cat([y[:, :1], labels], 1)
        return labels.view_as(y)

    def factors(self, labelled: Tensor) -> Tensor:
        """What a sample's loss takes each position's times, (N,), from which of its positions have labels."""
        counts = labelled.sum(1, dtype=torch.float64).clamp(min=1)
        return 1 / counts if self.averaged else torch.ones_like(counts)


def drawn(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """A class for each row of probabilities (M, classes) from its number in [0, 1), (M,)."""
    found = []
    rows = max(1, DRAWN_AT_ONCE // probabilities.shape[1])
    for part, u in zip(probabilities.split(rows), uniforms.split(rows), strict=True):
        below = part.double().cumsum(1)
        found.append(torch.searchsorted(below, (u * below[:, -1])[:, None], right=True).squeeze(1))
    return torch.cat(found).clamp_(max=probabilities.shape[1] - 1)


def uniforms_of(samples: Tensor, positions: int) -> Tensor:
    """Numbers in [0, 1) for the positions of samples, (N, positions), float64, each sample's from its own in [0, 1).

    They do not depend on what other samples there are, nor those of the first positions on how many follow.
    """
    rows = []
    for u in samples.tolist():
        generator = torch.Generator().manual_seed(int(u * 2**53))
        rows.append(torch.rand(positions, dtype=torch.float64, generator=generator))
    return torch.stack(rows).to(samples.device)
