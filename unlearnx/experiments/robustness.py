"""What comes back of a forget set: when weights are rounded, when a few of its samples are learned, to a probe.

Each number is to be compared with the same of a retrained model, to which forgotten samples come back as well as others
of their kind: what is above that was hidden, and not forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from unlearnx._copies import independent, merged
from unlearnx._data import Data, drawn, size
from unlearnx._losses import Loss
from unlearnx.metrics.robustness import few_and_rest, linear_probe, relearn_, rounded_weights

BITS = (8, 4)
COUNTS = (1, 10, 100)  # samples that are learned again, as far as they are no more than LEARNED of the forget set
LEARNED = 0.75
STEPS, RATE = 10, 1e-3  # of learning them again
READ = 1000  # most samples of the forget set that are looked at
PROBE = "probe"

Known = Callable[[nn.Module, Data], float]  # how much of samples a model knows, from 0 to 1


class Robustness:
    """Measures how much of a forget set comes back in models.

    Args:
        forget: the forget set.
        known: says how much of some samples a model knows, such as its accuracy.
        loss_fn: of learning them again.
        autocast: dtype of autocast.
        seed: of the samples that are learned again.
        counts: how many these are.
        most: samples of the forget set that are looked at, drawn at random.
        before: makes of a copy of a model what is trained when samples are learned again; None for the copy itself.

    Attributes:
        sizes: by measure, how many samples it is read on.
    """

    def __init__(
        self,
        forget: Data,
        known: Known,
        *,
        loss_fn: Loss,
        autocast: torch.dtype | None,
        seed: int,
        counts: Sequence[int] = COUNTS,
        most: int = READ,
        before: Callable[[nn.Module], nn.Module] | None = None,
    ):
        self._known, self._before = known, before
        self._settings: dict[str, Any] = {"loss_fn": loss_fn, "autocast": autocast, "seed": seed}
        self._forget = drawn(forget, most, torch.Generator().manual_seed(seed))
        n = size(self._forget)
        self._counts = counts
        self._few, self._rest = few_and_rest(self._forget, [0, *(k for k in counts if k <= LEARNED * n)], seed)
        self.sizes = {f"rounded_{bits}": n for bits in BITS}
        self.sizes |= {f"relearned_{k}": size(self._rest) for k in self._few}

    def measure(self, model: nn.Module) -> dict[str, float | None]:
        """How much the model knows with its weights rounded, and of the rest after some samples were learned again.

        None where the forget set has too few samples for that, or learning leads to no finite loss. The model is left
        as it was.
        """
        whole = merged(model).eval()
        found: dict[str, float | None] = {}
        for bits in BITS:
            found[f"rounded_{bits}"] = self._known(rounded_weights(whole, bits), self._forget)
        found |= dict.fromkeys(f"relearned_{k}" for k in self._counts)
        for k, samples in self._few.items():
            twin = independent(whole if self._before else model).eval()
            twin = self._before(twin) if self._before else twin
            with suppress(FloatingPointError):
                relearn_(twin, samples, steps=STEPS, lr=RATE, **self._settings)
                found[f"relearned_{k}"] = self._known(twin, self._rest)
        return found


def probed(model: nn.Module, train: Data, test: Data, **settings: Any) -> float:
    """The accuracy on `test` of a linear classifier on the model's last hidden states, fitted on `train`.

    Raises:
        ValueError: the model gives no class scores, or has no hidden states.
    """
    found = linear_probe(model, train, test, **settings)
    return list(found.values())[-1]


def described(samples: str) -> Mapping[str, tuple[str, str]]:
    """Title and meaning of every measure of a classifier; the samples are called `samples`, images for example."""
    back = "what is above the retrained model's comes back"
    rounded = {
        f"rounded_{bits}": (
            f"forget accuracy, {bits}-bit weights",
            f"accuracy on the forget set once the weights are rounded to {bits} bits: {back}",
        )
        for bits in BITS
    }
    relearned = {
        f"relearned_{k}": (
            f"relearned from {k}",
            f"accuracy on the rest of the forget set after {STEPS} steps on {k} of its {samples}: {back}",
        )
        for k in COUNTS
    }
    probe = (
        "linear probe",
        "accuracy on one half of the forget set of a linear classifier on the last hidden states, which is fitted on "
        "what stays and on the other half: what is above the retrained model's is still known within",
    )
    return {**rounded, **relearned, PROBE: probe}
