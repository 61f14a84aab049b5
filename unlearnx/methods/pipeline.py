"""Several methods in sequence, for example one that impairs the model and one that trains it again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unlearnx._arguments import check_fields
from unlearnx._checks import check_at_least_zero
from unlearnx._copies import independent
from unlearnx._pace import Pace
from unlearnx._wrappers import rewrapped
from unlearnx.methods.base import Findings, Method, NotApplied, refuse_harm
from unlearnx.methods.outcome import Outcome
from unlearnx.methods.request import Request
from unlearnx.methods.verdict import judge
from unlearnx.metrics import mean_loss
from unlearnx.metrics.levels import UnseenLevel


@dataclass
class Pipeline:
    """Apply methods in sequence and check only the last model: ``Pipeline([SSD(), FineTune()])``.

    The outcome's ``info["stages"]`` holds what each stage said of itself, besides whether it was ``applied``, if not,
    the ``reason``, and how many samples it ``forgets``. A stage that is not applied passes its input model on.

    Args:
        stages: the methods; their own ``max_increase`` is not used.
        max_increase: as in :class:`unlearnx.methods.Method`, for the loss of the last model compared with the first.
        seed: seed of all stages; None for the stages' own seeds.
        progress: show progress bars of every stage (needs ``unlearnx[experiments]``).

    Raises:
        ValueError: there are no stages, or ``max_increase`` is negative.
        TypeError: a stage is not a method.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = Pipeline([RandomPerturbation(), FineTune(epochs=2)])(nn.Linear(8, 3), Request.remove((x, y), [0]))
        >>> [stage["applied"] for stage in outcome.info["stages"]]
        [True, True]
    """

    stages: Sequence[Method]
    max_increase: float | None = None
    seed: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.stages:
            raise ValueError("stages: is empty, expected at least one method")
        for stage in self.stages:
            if not isinstance(stage, Method):
                raise TypeError(f"stages: {stage!r} is of type {type(stage).__name__}, expected a Method")
        check_at_least_zero(max_increase=self.max_increase, unbounded=True)

    def _steps(self, model: nn.Module, request: Request) -> Iterable[tuple[Method, Request]]:
        """The stages with what each is to forget."""
        return [(stage, request) for stage in self.stages]

    def __call__(self, model: nn.Module, request: Request) -> Outcome:
        """Apply the stages to a copy of `model`.

        Raises:
            ValueError: a stage raises it.
        """
        common: dict[str, Any] = {"max_increase": math.inf, "progress": self.progress}
        if self.seed is not None:
            common["seed"] = self.seed
        current, outcomes = model, []
        known: tuple[Request, UnseenLevel] | None = None
        pace: Pace | None = None
        for stage, part in self._steps(model, request):
            stage = replace(stage, **common)
            stage._check(current, part)
            pace = stage._pace(model, request) if pace is None else pace
            if known is None or known[0] is not part:
                known = part, stage._level(model, part, pace)
            outcomes.append(stage._on_copy(current, part, Findings(known[1], pace)))
            outcomes[-1].info["forgets"] = len(part.forget)
            current = outcomes[-1].model
        assert known is not None, "there is at least one stage"
        assert pace is not None
        level, before, after = known[1], outcomes[0].loss_before, outcomes[-1].loss_after
        if known[0] is not request:
            level = self.stages[0]._level(model, request, pace)
            before = mean_loss(model, self.stages[0]._harm, request.target, **pace.settings)
        applied, reason = True, None
        try:
            if not any(outcome.applied for outcome in outcomes):
                raise NotApplied(str(outcomes[0].reason))
            refuse_harm(request, before, after, self.max_increase)
        except NotApplied as found:
            current, applied = rewrapped(independent(model), model), False
            reason, after = str(found), before
        forgotten, evidence = judge(model, current, request, level, **pace.settings)
        return Outcome(
            model=current,
            applied=applied,
            forgotten=forgotten,
            evidence=evidence,
            reason=reason,
            loss_before=before,
            loss_after=after,
            seconds=sum(outcome.seconds for outcome in outcomes),
            gradient_evaluations=sum(outcome.gradient_evaluations for outcome in outcomes),
            info={"stages": [{"applied": o.applied, "reason": o.reason, **o.info} for o in outcomes]},
        )
