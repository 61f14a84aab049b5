"""What a method returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

Verdict = Literal["yes", "partly", "no", "unknown"]


@dataclass(kw_only=True)
class Outcome:
    """The result of applying a method.

    Attributes:
        model: the new model, with the train and eval modes of the old one.
        applied: whether the model was changed.
        forgotten: whether the new model does on the forget set what one would that never saw it; ``"unknown"`` where
            nobody has looked.
        evidence: the measures that `forgotten` rests on.
        reason: why the model was not changed; None where it was.
        loss_before: mean loss of the old model on the corrected data, or on the retain set of a removal.
        loss_after: the same of the new model.
        seconds: wall-clock time of the whole call.
        gradient_evaluations: number of per-sample gradients that were computed, repetitions included; a curvature
            product counts as one for each of its samples.
        info: what the method itself has to say. It answers the names under which some of the fields were once kept in
            it: ``"applied"``, ``"reason"`` and ``"corrected_loss"``, a list of ``loss_before`` and ``loss_after``.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = FineTune()(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.applied, outcome.gradient_evaluations
        (True, 54)
    """

    model: nn.Module
    applied: bool
    forgotten: Verdict = "unknown"
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    loss_before: float
    loss_after: float
    seconds: float
    gradient_evaluations: int
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        earlier = {"applied": self.applied, "corrected_loss": [self.loss_before, self.loss_after]}
        if self.reason is not None:
            earlier["reason"] = self.reason
        self.info = _Info(self.info, earlier)


class _Info(dict[str, Any]):
    """A dictionary that also answers, without holding them, the names in `earlier`."""

    def __init__(self, own: Mapping[str, Any], earlier: Mapping[str, Any]):
        super().__init__(own)
        self._earlier = earlier

    def __missing__(self, name: str) -> Any:
        return self._earlier[name]

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name, self._earlier.get(name, default))
