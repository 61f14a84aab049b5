"""Taking points out of the posterior of the weights by one Newton step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unlearnx._checks import check_at_least_zero
from unlearnx._data import size
from unlearnx._vectors import Vector, scaled
from unlearnx.curvature import CurvatureOperator, LiSSA
from unlearnx.curvature.batch_curvature import KINDS
from unlearnx.curvature.solvers import Solver
from unlearnx.methods.base import Work
from unlearnx.methods.importance import diagonal, mean_entry
from unlearnx.methods.influence import InfluenceUpdate, check_size, check_solver, solved

DIAGONAL = "diagonal"


@dataclass
class NewtonRepair(InfluenceUpdate):
    """``theta <- theta + gamma * (F + damping I)^-1 (|C| / N) grad loss(C)``: the points C to forget, taken out.

    With the weights as the mode of a Gaussian posterior of precision N F, F being the curvature of the mean loss on
    all N training points, this is the mode of the posterior without the points C; grad loss(C) is the gradient of
    their mean loss. Where points are corrected, their losses with the corrected labels are taken in as well.

    Args:
        gamma: size of the step, 1 for the update as derived, or ``"auto"`` for a line search: on the loss of the points
            that stay, or see `forget_loss`.
        kind: of F: ``"ggn"``, ``"hessian"``, or ``"diagonal"`` for the empirical Fisher diagonal, which needs no
            solver.
        damping: multiple of the identity added to F, on top of the solver's own; None for none, and for the mean entry
            of a diagonal.
        solver: of the linear system; its residual is reported. A solution that diverged is not applied.
        steps: most steps to take, each from where the last one ended.
        points, points_per_step, forget_loss: as for :class:`unlearnx.methods.FirstOrder`.

    Raises:
        ValueError: a number does not fit, the kind is unknown, or the solver is none.

    Source: Tanno et al., "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022, section 4.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> method = NewtonRepair(gamma=1.0, damping=0.1, solver=ConjugateGradient())
        >>> outcome = method(model, Request.remove((x, y), range(6)))
        >>> outcome.info["steps"][0]["residual"] < 0.01
        True
    """

    gamma: float | str = "auto"
    kind: str = "ggn"
    damping: float | None = None
    solver: Solver = field(default_factory=lambda: LiSSA(damping=1e-2, batch_size=None, recursion_depth=20))
    points: str = field(default="forget", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("gamma", self.gamma)
        check_at_least_zero(damping=self.damping)
        if self.kind not in (*KINDS, DIAGONAL):
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(KINDS)} and {DIAGONAL}")
        check_solver(self.solver)

    def _fixed_step(self) -> float | None:
        return check_size("gamma", self.gamma)

    def _first_guess(self, work: Work) -> float:
        return 1.0

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        data = work.request.dataset
        difference = scaled(difference, 1 / size(data))
        if self.kind == DIAGONAL:
            fisher = diagonal(self, work, data, "empirical", "mean")
            damping = mean_entry(fisher) if self.damping is None else self.damping
            return {name: t / (fisher[name] + damping) for name, t in difference.items()}
        operator = CurvatureOperator(
            work.model,
            self.loss_fn,
            data,
            kind=self.kind,
            damping=self.damping or 0.0,
            params=work.names,
            batch_size=max(self.batch_size, 1024),
        )
        return solved(self.solver, operator, difference, work, record)
