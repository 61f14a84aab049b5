"""What a first pass over the data saw at the layers, for a second use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unlearnx._memory import free_bytes
from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.samples import OnContribution

KEPT_MEMORY_FRACTION = 0.25  # of the free memory


class KeptContributions:
    """Contributions of a pass, all of them or, where a quarter of the free memory does not hold them, none.

    Attributes:
        complete: whether all are kept.
    """

    def __init__(self, device: torch.device):
        self.complete = True
        self._bytes_left = KEPT_MEMORY_FRACTION * free_bytes(device)
        self._storages: set[int] = set()
        self._kept: list[tuple[str, Contribution, Tensor | None]] = []

    def add(self, name: str, contribution: Contribution, weight: Tensor | None) -> None:
        """Keep a contribution; or forget all of them, if it is too much."""
        if not self.complete:
            return
        tensors: list[Any] = [*vars(contribution).values(), weight]
        for storage in (t.untyped_storage() for t in tensors if isinstance(t, Tensor)):
            if storage.data_ptr() not in self._storages:  # layers may have an input in common
                self._storages.add(storage.data_ptr())
                self._bytes_left -= storage.nbytes()
        self._kept.append((name, contribution, weight))
        if self._bytes_left < 0:
            self.complete = False
            self._kept.clear()

    def replay(self, on_contribution: OnContribution) -> None:
        """Hand over what is kept, in order, and forget it."""
        while self._kept:
            on_contribution(*self._kept.pop(0))
