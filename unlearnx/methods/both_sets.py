"""What stays and what is to be forgotten as one set, for methods that train on both at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from unlearnx._batches import Nest
from unlearnx._data import size
from unlearnx._losses import Loss, SampleLoss
from unlearnx._pairs import Pair
from unlearnx._per_sample import per_sample
from unlearnx._sources import Changed
from unlearnx.methods.request import Request

Marked = tuple[Nest, Tensor]  # labels, and each sample's place in the forget set; -1 for those that stay
Forgetting = Callable[[Tensor, Tensor], Tensor]


class BothSets:
    """The training samples of a request, and losses that tell what stays from what goes.

    Attributes:
        data: the corrected data, or the retain set, and the forget set; labels are :data:`Marked`.
    """

    def __init__(self, request: Request):
        sets = request.trained_target, request.trained_forget_set
        self._retained, self._forgotten = map(size, sets)
        retained = self._retained

        def mark(x: Nest, y: Nest, index: Tensor) -> Pair:
            return x, (y, (index - retained).clamp(min=-1))

        both: Dataset[Any] = ConcatDataset(sets)
        self.data = Changed(both, mark)

    def loss(self, loss_fn: Loss, weight: float, forgetting: Forgetting) -> Loss:
        """A loss of each sample, of which the mean over all is ``weight * (mean of loss_fn over what stays)``, plus
        the mean of ``forgetting(losses, places)`` over the forget set.

        Args:
            loss_fn: losses of single samples.
            weight: of the retain set's mean loss.
            forgetting: is given the losses of samples (N,), and their places in the forget set; those of samples that
                stay have place 0, and do not count.
        """
        each = SampleLoss(loss_fn).each

        @per_sample
        def both(output: Any, y: Marked) -> Tensor:
            labels, place = y
            losses = each(output, labels)
            return self.weighted(place, weight * losses, forgetting(losses, place.clamp(min=0)))

        return both

    def weighted(self, place: Tensor, stays: Tensor, goes: Tensor) -> Tensor:
        """Losses as of :func:`weighted`, over both sets."""
        return weighted(place, stays, goes, self._retained, self._forgotten)


def weighted(place: Tensor, stays: Tensor, goes: Tensor, retained: int, forgotten: int) -> Tensor:
    """Losses (N,) whose mean over all is the mean of `stays` over the samples that stay, plus that of `goes` over those
    that go, whose `place` is not negative.

    Args:
        retained, forgotten: how many samples of either there are.
    """
    total = retained + forgotten
    return torch.where(place < 0, total / max(1, retained) * stays, total / forgotten * goes)
