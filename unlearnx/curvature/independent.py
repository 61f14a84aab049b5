"""Losses of labels that are independent of each other: answers of yes or no, and values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx._losses import Loss, torch_loss
from unlearnx.losses import binary_cross_entropy, mse

VARIANCE = 0.5  # of a normal distribution whose negative log-likelihood is the squared error


@dataclass(frozen=True)
class IndependentLabels:
    """What a model says of labels whose losses are linear in the label, but for what no parameter changes.

    The square of a label's gradient is then expected to be the label's variance times that of the difference between
    its losses with the labels 1 and 0.

    Attributes:
        answers: whether they are yes or no, with a probability, and not values, with a normal distribution.
        logits: whether the outputs for answers are logits of yes, not probabilities.
        likelihood: whether the loss is a negative log-likelihood, or a part of one; not where `pos_weight` is given.
    """

    answers: bool
    logits: bool = False
    likelihood: bool = True

    @classmethod
    def of(cls, loss_fn: Loss) -> IndependentLabels | None:
        """Those of torch's binary cross-entropies and squared error, and of ours; None for any other loss."""
        known = torch_loss(loss_fn)
        if known is not None:
            function, settings = known
            if settings.get("weight") is not None:  # it has the shape of the batch
                return None
            if function is F.binary_cross_entropy_with_logits:
                return cls(answers=True, logits=True, likelihood=settings.get("pos_weight") is None)
            if function is F.binary_cross_entropy:
                return cls(answers=True)
            return cls(answers=False) if function is F.mse_loss else None
        while isinstance(loss_fn, partial):
            loss_fn = loss_fn.func
        if loss_fn is binary_cross_entropy:
            return cls(answers=True, logits=True)
        return cls(answers=False) if loss_fn is mse else None

    def means(self, output: Tensor) -> Tensor:
        """Of the labels, from the model's output, in float32 or better."""
        output = output if output.dtype == torch.float64 else output.float()
        return output.sigmoid() if self.logits else output

    def variances(self, means: Tensor) -> Tensor:
        """Of the labels."""
        return means * (1 - means) if self.answers else torch.full_like(means, VARIANCE)

    def drawn(self, means: Tensor, uniforms: Tensor) -> Tensor:
        """Labels, each from its number in [0, 1), float64."""
        if self.answers:
            return (uniforms < means).to(means)
        between = uniforms + 2.0**-54  # the numbers are multiples of 2^-53, and 0 would be infinitely far off
        return means + VARIANCE**0.5 * torch.special.ndtri(between).to(means)
