"""The first-order influence update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from unlearnx._data import size
from unlearnx._vectors import Vector
from unlearnx.methods.base import Work
from unlearnx.methods.influence import InfluenceUpdate


@dataclass
class FirstOrder(InfluenceUpdate):
    """``theta <- theta - tau * sum_i (grad loss(corrected_i) - grad loss(learned_i))``, repeated `steps` times.

    Args:
        tau: step size, or ``"auto"`` for a line search at every step, on the loss of the corrected data, or as
            `forget_loss` says.
        steps: most steps to take.
        points: the samples of a step. ``"predicted"``: all samples whose corrected label the model does not predict,
            with its prediction as the old label, selected anew at every step. ``"forget"``: the forget set of the
            request. Removals, and corrections of features, always use the forget set.
        points_per_step: most samples of one step, drawn at random; None for all of them.
        forget_loss: for removals with automatic step size: the mean loss of the forget set at which steps end, for
            example the loss of samples that the model has never seen. Steps are doubled until it is reached, as far as
            ``max_increase`` allows. None is log(classes), the loss of guessing, if no sample of the retain set has a
            label of the forget set, as in class removal; otherwise steps lower the loss of the retain set instead.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 6; ``"predicted"`` as in
    its public code.

    Example:
        >>> x, true = torch.randn(60, 8), torch.arange(60) % 3
        >>> given = true.clone()
        >>> given[:6] = (true[:6] + 1) % 3  # wrong labels
        >>> outcome = FirstOrder(steps=2)(nn.Linear(8, 3), Request.correct((x, given), (x, true)))
        >>> outcome.loss_after < outcome.loss_before
        True
    """

    _strength: ClassVar[str | None] = "tau"

    tau: float | str = "auto"
    steps: int = field(default=10, kw_only=True)

    def _first_guess(self, work: Work) -> float:
        return 1.0 / size(work.target)

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        return difference
