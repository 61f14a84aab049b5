"""What per-sample gradients are gradients of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unlearnx._batches import Nest, take
from unlearnx._losses import SampleLoss


@dataclass
class Targets:
    """What to differentiate: the losses with labels y, minus the losses with labels `minus` where these are given.

    `weight` (N,) weights the samples' gradients, not their losses.
    """

    y: Nest
    minus: Nest | None = None
    weight: Tensor | None = None

    def objective(self, loss: SampleLoss, output: Any) -> Tensor:
        """Unweighted sum over the samples; `weight` is applied to the per-sample gradients later."""
        total = loss.total(output, self.y)
        return total if self.minus is None else total - loss.total(output, self.minus)

    def part(self, s: slice) -> Targets:
        """The targets of the samples in slice `s`."""
        minus, weight = (None if t is None else take(t, s) for t in (self.minus, self.weight))
        return Targets(take(self.y, s), minus, weight)
