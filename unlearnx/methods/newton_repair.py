"""Removing samples from the posterior of the weights by a Newton step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from unlearnx._checks import check_at_least_zero
from unlearnx._data import size
from unlearnx._vectors import Vector, scaled
from unlearnx.curvature import LiSSA
from unlearnx.curvature.batch_curvature import CURVATURE_KINDS
from unlearnx.curvature.solvers import Solver
from unlearnx.methods.base import Work
from unlearnx.methods.importance import diagonal, mean_entry
from unlearnx.methods.influence import InfluenceUpdate
from unlearnx.methods.solving import check_solver, curvature_operator, solved_direction

DIAGONAL = "diagonal"


@dataclass
class NewtonRepair(InfluenceUpdate):
    """``theta <- theta + gamma * (F + damping I)^-1 (|C| / N) grad loss(C)``, where C is the forget set.

    Here grad loss(C) is the gradient of the mean loss over C, and F the curvature of the mean loss over all N training
    samples. If the weights are the mode of a Gaussian posterior of precision N F, the step leads to the mode of the
    posterior without C. In a correction, the losses of the corrected samples are added.

    Args:
        gamma: step size: 1 is the update as derived; ``"auto"`` is a line search on the loss of the retain set, or as
            `forget_loss` says.
        kind: what to take as F: ``"ggn"``, ``"hessian"``, or ``"diagonal"``, the empirical Fisher diagonal, which needs
            no solver.
        damping: multiple of the identity added to F, in addition to the solver's own. None is the mean entry of F for
            ``kind="diagonal"``, and else as for :class:`SecondOrder`.
        solver: solver of the linear system; its residual is reported. A diverged solution is not applied.
        steps: most steps to take, each starting from the last one's result.
        points, points_per_step, forget_loss: as for :class:`unlearnx.methods.FirstOrder`.

    Raises:
        ValueError: a number is out of range, the kind is unknown, or `solver` is not a solver.

    Source: Tanno et al., "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022, section 4.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> method = NewtonRepair(gamma=1.0, damping=0.1, solver=ConjugateGradient())
        >>> outcome = method(model, Request.remove((x, y), range(6)))
        >>> outcome.info["steps"][0]["residual"] < 0.01
        True
    """

    _strength: ClassVar[str | None] = "gamma"

    gamma: float | str = "auto"
    kind: str = "ggn"
    damping: float | None = None
    solver: Solver = field(default_factory=lambda: LiSSA(damping=1e-2, batch_size=None, recursion_depth=20))
    points: str = field(default="forget", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(damping=self.damping)
        if self.kind not in (*CURVATURE_KINDS, DIAGONAL):
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(CURVATURE_KINDS)} and {DIAGONAL}")
        check_solver(self.solver, None if self.kind == DIAGONAL else self.damping)

    def _first_guess(self, work: Work) -> float:
        return 1.0

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        data = work.request.dataset
        difference = scaled(difference, 1 / size(data))
        if self.kind == DIAGONAL:
            fisher = diagonal(self, work, data, "empirical", "mean")
            damping = mean_entry(fisher) if self.damping is None else self.damping
            return {name: t / (fisher[name] + damping) for name, t in difference.items()}
        operator = curvature_operator(self, self.solver, work.model, work.names, data, self.kind, self.damping)
        return solved_direction(self.solver, operator, difference, work, record)
