"""The methods of the study, and the strengths that are tried of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unlearnx.experiments.text_loss import with_text_loss
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
    Pipeline,
    SecondOrder,
    SimNPO,
    TaskVector,
)


@dataclass(frozen=True)
class Candidate:
    """A method with the field that is its strength, and how far apart the values are that are tried.

    Without a strength, it is tried as it is.
    """

    method: Method | Pipeline
    strength: str | None
    factor: float = 3.0

    def tried(self, trials: int) -> list[Method | Pipeline]:
        """The method at so many strengths: a geometric grid about its own, in which steps are `factor`."""
        if self.strength is None:
            return [self.method]
        return [self._with(self.factor ** (k - (trials - 1) / 2)) for k in range(trials)]

    def value(self, method: Method | Pipeline) -> float | None:
        """The strength that the method has."""
        return None if self.strength is None else getattr(method, self.strength)

    def _with(self, factor: float) -> Method | Pipeline:
        assert self.strength is not None
        own = getattr(self.method, self.strength)
        value = float(f"{own * factor:.3g}")
        changed: dict[str, Any] = {self.strength: max(1, round(value)) if isinstance(own, int) else value}
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


def candidate(method: Method | Pipeline, batch_size: int) -> Candidate:
    """A method that is not among these, with the loss of texts: what is tried is its strength, if that is a number.

    A strength of ``"auto"`` is found by the method itself, within the harm that its ``max_increase`` allows.
    """
    if isinstance(method, Pipeline):
        stages = [replace(with_text_loss(stage), batch_size=batch_size) for stage in method.stages]
        return Candidate(replace(method, stages=stages, max_increase=math.inf), None)
    made, name = replace(with_text_loss(method), batch_size=batch_size), method._strength
    if made._finds_strength:
        return Candidate(made, None)
    value = None if name is None else getattr(made, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return Candidate(replace(made, max_increase=math.inf), name if is_number else None)
