"""A few steps uphill on the loss of the forget set, in the metric of what stays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from unlearnx._checks import check_above_zero, check_at_least_one
from unlearnx._data import drawn, size
from unlearnx._vectors import Vector, scaled
from unlearnx.curvature import EKFAC, Factors, grad_difference
from unlearnx.methods.base import Work
from unlearnx.methods.chosen_parameters import ChosenParameters
from unlearnx.methods.solving import damping_of
from unlearnx.methods.step_size import check_size
from unlearnx.methods.stored import FromFactors, training_samples
from unlearnx.metrics import mean_loss

MOST_SAMPLES = 10_000  # of what stays, that factors are fitted on


@dataclass
class KFADE(FromFactors):
    """``theta <- theta + step / steps * (F + lambda I)^-1 m / N grad loss(forget)``, `steps` times (K-FADE).

    F is the Fisher information of what stays in Kronecker factors, fitted once, before the first step; m is the size of
    the forget set and N that of the training data. One step of size 1 is the influence update. With F as metric, a
    change that would alter what the model says of what stays is dear, and one that alters what it says of the forget
    set alone is cheap. Where the forget set is corrected, a step goes up its old losses and down its new ones.

    Args:
        step: sum of the sizes of the steps. ``"auto"`` finds the smallest one that forgets.
        steps: how many there are; the gradient is taken anew before each.
        damping: lambda; None for a hundredth of the largest eigenvalue of F.
        fisher_type: the labels with which F is fitted, as for :class:`unlearnx.curvature.EKFAC`.
        factors: those of the training data, fitted before; no retain set is needed then.

    Raises:
        ValueError: a number is out of range, or ``fisher_type`` is unknown.

    Source: McKinney et al., "Gauss-Newton Unlearning for the LLM Era", arXiv 2602.10568, 2026, of which we had the
    abstract: a few uphill Gauss-Newton steps on the forget set, in the Kronecker-factored curvature of what stays; and
    that their update can be applied again after further training (:class:`Reapply`). Ours are the eigenvalues of
    EK-FAC, the number of steps, the damping, what is done with corrections, and how the size of the steps is found.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = KFADE(step=1.0)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.info["step"], outcome.info["damping"] > 0
        (1.0, True)
    """

    _strength: ClassVar[str | None] = "step"

    step: float | str = "auto"
    steps: int = 4
    damping: float | None = None
    fisher_type: str = field(default="mc", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("step", self.step)
        check_at_least_one(steps=self.steps)
        check_above_zero(damping=self.damping)
        EKFAC(fisher_type=self.fisher_type)  # refuses unknown ones

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        factors = self._fitted(work)
        damping = damping_of(self.damping, factors.largest)
        parameters, n = ChosenParameters(work.model, work.names), training_samples(work)

        def climb(step: float) -> None:
            for _ in range(self.steps):
                loss = mean_loss(work.model, self.loss_fn, work.request.forget_set, **work.pace.settings)
                if not math.isfinite(loss):  # far too large a step: there is no gradient any more
                    return
                direction = factors.solve(self._gradient(work), damping)
                parameters.write(parameters.read(), direction, step / self.steps / n)

        step = check_size("step", self.step)
        step = work.least_strength(climb, 1.0, info) if step is None else step
        info.update(step=step, damping=damping)
        climb(step)

    def _fitted(self, work: Work) -> Factors:
        if self.factors is not None:
            return self.factors
        data, generator = work.target, torch.Generator().manual_seed(self.seed)
        if size(data) > MOST_SAMPLES:
            data = drawn(data, MOST_SAMPLES, generator)
        work.gradient_evaluations += size(data)
        return EKFAC(fisher_type=self.fisher_type).fit(
            work.model,
            self.loss_fn,
            data,
            params=work.names,
            diagonal=False,
            batch_size=work.pace.batch_size,
            generator=generator,
            progress=self.progress,
        )

    def _gradient(self, work: Work) -> Vector:
        """How a step down changes the sum of the losses: those of the new samples less those of the old ones."""
        request = work.request
        work.gradient_evaluations += len(request.forget)
        gradient = grad_difference(
            work.model,
            self.loss_fn,
            request.forget_set,
            request.correction,
            params=work.names,
            batch_size=work.pace.batch_size,
        )
        return gradient if request.corrected is not None else scaled(gradient, -1.0)
