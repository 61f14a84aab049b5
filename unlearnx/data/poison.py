"""Label poisoning: a number of labels swapped between pairs of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearnx._files import write_atomically


@dataclass(frozen=True)
class Poison:
    """Which training samples were given which wrong labels.

    Attributes:
        indices: of the poisoned samples, ascending, int64 (K,).
        given: the wrong labels they were given, int64 (K,).
        true: the labels they should have, int64 (K,).

    Example:
        >>> labels = torch.arange(10).repeat(4)
        >>> poison = flip_labels(labels, budget=10)
        >>> (poison.apply(labels) != labels).sum(), torch.equal(labels[poison.indices], poison.true)
        (tensor(10), True)
    """

    indices: Tensor
    given: Tensor
    true: Tensor

    def apply(self, labels: Tensor) -> Tensor:
        """A copy of the clean `labels` with the wrong ones in place.

        Raises:
            ValueError: the labels are not those that were poisoned.
        """
        if len(self.indices) and int(self.indices.max()) >= len(labels):
            last = int(self.indices.max())
            raise ValueError(f"labels: has {len(labels)} entries, but the poison changes the label of sample {last}")
        if not torch.equal(labels[self.indices], self.true):
            raise ValueError("labels: differ from the clean labels that were saved with the poison")
        poisoned = labels.clone()
        poisoned[self.indices] = self.given
        return poisoned

    def save(self, path: Path) -> None:
        """Write an .npz file that :meth:`load` reads."""
        arrays = {k: getattr(self, k).numpy() for k in ("indices", "given", "true")}
        write_atomically(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> Poison:
        """Read an .npz file with the arrays indices, given and true."""
        with np.load(path) as arrays:
            return cls(*(torch.from_numpy(arrays[k].astype(np.int64)) for k in ("indices", "given", "true")))


def flip_labels(labels: Tensor, budget: int, *, classes: int = 10, seed: int = 42) -> Poison:
    """Choose `budget` samples, equally many of each class, and give them the label of the paired class.

    Class c is paired with ``classes - 1 - c``; with an odd number of classes the middle class keeps its labels.

    Args:
        labels: the clean labels, int64 (N,).
        budget: number of labels to flip.
        classes: number of classes.
        seed: of the choice of samples.

    Raises:
        ValueError: the budget is negative, or a class has too few samples for its part of it.

    Source: Warnecke et al., NDSS 2023, public code.

    Example:
        >>> labels = torch.arange(10).repeat(4)
        >>> poison = flip_labels(labels, budget=10)  # one of every class
        >>> torch.equal(poison.given, 9 - poison.true)
        True
    """
    sources = [c for c in range(classes) if c != classes - 1 - c]
    each, extra = divmod(budget, len(sources))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for k, c in enumerate(sources):
        members = order[labels[order] == c]
        wanted = each + (k < extra)
        if not 0 <= wanted <= len(members):
            raise ValueError(
                f"budget is {budget}, of which class {c} has to flip {wanted} labels, expected 0 to {len(members)}"
            )
        chosen.append(members[:wanted])
    indices = torch.cat(chosen).sort().values
    true = labels[indices].clone()
    return Poison(indices, classes - 1 - true, true)
