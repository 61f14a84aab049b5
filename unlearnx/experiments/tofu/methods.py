"""The methods of the study, and the strengths that are tried of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unlearnx.losses import causal_lm
from unlearnx.methods import (
    IDK,
    KFADE,
    NPO,
    RMU,
    SCRUB,
    SSD,
    FineTune,
    FirstOrder,
    FisherMasking,
    Method,
    NegGrad,
    SecondOrder,
    SimNPO,
    TaskVector,
)


@dataclass(frozen=True)
class Candidate:
    """A method with the field that is its strength, and how far apart the values are that are tried."""

    method: Method
    strength: str
    factor: float = 3.0

    def at(self, k: int, trials: int) -> Method:
        """The method at the k-th of so many strengths: a geometric grid about its own, in which steps are `factor`."""
        own = float(getattr(self.method, self.strength))
        changed: dict[str, Any] = {self.strength: float(f"{own * self.factor ** (k - (trials - 1) / 2):.3g}")}
        if self.strength == "lr" and isinstance(self.method, SCRUB):
            changed["max_lr"] = 2 * changed["lr"]
        return replace(self.method, **changed)


def candidates(batch_size: int) -> Mapping[str, Candidate]:
    """All methods by name; none is kept from being applied by what it does to what stays."""
    common: dict[str, Any] = {"batch_size": batch_size, "max_increase": float("inf")}
    mean: dict[str, Any] = {"loss_fn": causal_lm(), **common}
    total: dict[str, Any] = {"loss_fn": causal_lm(per="token"), **common}
    epochs = 3
    return {
        "npo": Candidate(NPO(epochs=epochs, lr=3e-4, **total), "lr"),
        "simnpo": Candidate(SimNPO(epochs=epochs, lr=3e-4, **mean), "lr"),
        "grad-diff": Candidate(NegGrad(epochs=epochs, lr=1e-4, weight=0.5, **mean), "lr"),
        "rmu": Candidate(RMU(epochs=epochs, lr=3e-4, **mean), "lr"),
        "task-vector": Candidate(TaskVector(factor=1.0, epochs=epochs, lr=3e-4, **mean), "factor"),
        "idk": Candidate(IDK(epochs=epochs, lr=1e-4, **total), "lr"),
        "first-order": Candidate(FirstOrder(tau=1e-3, points="forget", **mean), "tau", 10.0),
        "second-order": Candidate(SecondOrder(steps=1, step=0.03, points="forget", **mean), "step", 10.0),
        "ssd": Candidate(SSD(alpha=3.0, **mean), "alpha"),
        "fisher-masking": Candidate(FisherMasking(ratio=1e-4, **mean), "ratio", 10.0),
        "k-fade": Candidate(KFADE(step=0.1, steps=4, **mean), "step", 10.0),
        "scrub": Candidate(SCRUB(epochs=epochs, max_epochs=2, lr=3e-4, max_lr=6e-4, **mean), "lr"),
        "fine-tuning": Candidate(FineTune(epochs=epochs, lr=3e-4, **mean), "lr"),
    }
