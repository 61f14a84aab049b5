"""First- and second-order influence updates, repeated and checked step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.data import Subset, TensorDataset

from unlearnx._data import Data, size
from unlearnx._progress import progress_bar
from unlearnx._vectors import Vector, scaled
from unlearnx.curvature import CurvatureOperator, IndefiniteSystem, LiSSA, grad_difference
from unlearnx.curvature.solvers import Solver
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.metrics import mean_loss, predict

SEARCH_SAMPLES = 10_000  # of the corrected data, for the line search; every step is then checked on all of it
BACKTRACKS = 4  # halvings of a searched step that fails this check


@dataclass(kw_only=True)
class _InfluenceUpdate(Method):
    """Steps ``theta <- theta - step * direction`` along the gradient difference of points to correct.

    Subclasses choose the direction and the size of a step. A step after which the loss on the corrected data is
    not finite, or not lower, is taken back and ends the run.
    """

    steps: int = 1
    points: str = "predicted"
    points_per_step: int | None = None

    def __post_init__(self) -> None:
        if self.points not in ("predicted", "forget"):
            raise ValueError(f"points is {self.points!r}, expected 'predicted' or 'forget'")
        for name in ("steps", "points_per_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")

    def _fixed_step(self) -> float | None:
        """The size that the user gave to every step; None for a line search."""
        raise NotImplementedError

    def _first_guess(self, work: Work) -> float:
        """Where the first line search starts."""
        raise NotImplementedError

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        """Direction of a step, from the sum of the points' gradient differences."""
        raise NotImplementedError

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        position = _Position(work.model, work.names)
        search_loss = self._search_loss(work, generator)
        info["steps"] = []
        loss, guess = work.initial_loss, self._first_guess(work)
        with progress_bar(type(self).__name__, self.steps, self.progress) as advance:
            for _ in range(self.steps):
                old, new = _points(work, self.points, self.points_per_step, generator)
                record: dict[str, Any] = {"points": len(old)}  # type: ignore[arg-type]
                if not record["points"]:
                    info["stopped"] = "the model agrees with every corrected label"
                    break
                info["steps"].append(record)
                start = position.read()
                try:
                    direction = self._direction(work, self._difference(work, old, new), record)
                    step = self._fixed_step()
                    halvings = 0
                    if step is None:
                        step = line_search(partial(position.loss_after, search_loss, start, direction), guess)
                        if step == 0:
                            raise NotApplied("no step along the direction lowers the corrected loss")
                        guess, halvings = step, BACKTRACKS
                    reached = position.loss_after(work.corrected_loss, start, direction, step)
                    while halvings and not reached < loss:
                        step, halvings = step / 2, halvings - 1  # best for the sample, too far for all of the data
                        reached = position.loss_after(work.corrected_loss, start, direction, step)
                    record.update(step=step, loss=reached)
                    if not math.isfinite(reached) or reached >= loss:
                        raise NotApplied(
                            f"a step of size {step:.3g} would take the corrected loss from {loss:.6g} to {reached:.6g}"
                        )
                except NotApplied as reason:
                    position.write(start, {}, 0.0)
                    info["stopped"] = str(reason)
                    break
                loss = reached
                advance(1)
        if loss >= work.initial_loss:
            raise NotApplied(info["stopped"])

    def _difference(self, work: Work, old: Data, new: Data | None) -> Vector:
        work.gradient_evaluations += size(old)
        difference = grad_difference(work.model, self.loss_fn, old, new, params=work.names, batch_size=self.batch_size)
        return difference if new is not None else scaled(difference, -1.0)  # a removal has nothing new: 0 - grad

    def _search_loss(self, work: Work, generator: torch.Generator) -> Callable[[], float]:
        n = size(work.target)
        chosen = torch.randperm(n, generator=generator)[:SEARCH_SAMPLES]
        sample = TensorDataset(*work.target[chosen]) if n > SEARCH_SAMPLES else work.target

        def loss() -> float:
            return mean_loss(work.model, self.loss_fn, sample, batch_size=self.batch_size, autocast=self.autocast)

        return loss


class _Position:
    """The chosen parameters of a model as one point."""

    def __init__(self, model: torch.nn.Module, names: list[str]):
        own = dict(model.named_parameters())
        self.params = {name: own[name] for name in names}

    def read(self) -> Vector:
        return {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def write(self, start: Vector, direction: Vector, step: float) -> None:
        """Set the parameters to ``start - step * direction``."""
        for name, p in self.params.items():
            # Not start - 0 * direction, which may be infinite.
            p.copy_(torch.add(start[name], direction[name], alpha=-step) if step else start[name])

    def loss_after(self, loss: Callable[[], float], start: Vector, direction: Vector, step: float) -> float:
        """What `loss` gives after a step."""
        self.write(start, direction, step)
        return loss()


def line_search(loss_at: Callable[[float], float], first: float, *, most: int = 40) -> float:
    """The step of lowest loss among ``first * 2^k``, found by doubling or halving; 0 where none lowers it."""
    best, lowest = 0.0, loss_at(0.0)
    step = first
    loss = loss_at(step)
    factor = 2.0 if loss < lowest else 0.5
    for _ in range(most):
        if loss < lowest:
            best, lowest = step, loss
        elif best or factor == 2.0:
            break
        step *= factor
        loss = loss_at(step)
    return best


def _points(work: Work, kind: str, limit: int | None, generator: torch.Generator) -> tuple[Data, Data | None]:
    """The points of one step as they were learned, possibly none, and as they should be."""
    request = work.request
    x, y = work.target.tensors
    # A prediction can stand for an old label, but not for old features or a number.
    if kind == "forget" or not request.labels_only or y.is_floating_point():
        old, new = request.forget_set, request.correction
        if limit is None or limit >= size(old):
            return old, new
        chosen = torch.randperm(size(old), generator=generator)[:limit].tolist()
        return Subset(old, chosen), None if new is None else Subset(new, chosen)
    predicted = predict(work.model, work.target, batch_size=work.method.batch_size, autocast=work.method.autocast)
    predicted = predicted.to(y.device)
    wrong = (predicted != y).nonzero().flatten()
    if limit is not None and limit < len(wrong):
        wrong = wrong[torch.randperm(len(wrong), generator=generator)[:limit].to(wrong.device)]
    x, y, predicted = x[wrong], y[wrong], predicted[wrong]
    return TensorDataset(x, predicted), TensorDataset(x, y)


def _check_size(name: str, value: float | str) -> float | None:
    """The fixed size of a step, None for "auto"."""
    if value == "auto":
        return None
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number > 0 or 'auto'")
    return float(value)


@dataclass
class FirstOrder(_InfluenceUpdate):
    """``theta <- theta - tau * sum_i (grad loss(corrected_i) - grad loss(learned_i))``, several times.

    Args:
        tau: step size, or ``"auto"`` for a line search on the corrected loss at every step.
        steps: most steps to take.
        points: which points a step corrects. ``"predicted"``: all points that the model gets wrong by the corrected
            labels, its own prediction standing for the old label, chosen anew at every step. ``"forget"``: the points
            of the request as they were given; removals and corrections of features always take these.
        points_per_step: most points of one step, drawn at random; None for all of them.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 6; ``"predicted"`` as in
    its public code.
    """

    tau: float | str = "auto"
    steps: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size("tau", self.tau)

    def _fixed_step(self) -> float | None:
        return _check_size("tau", self.tau)

    def _first_guess(self, work: Work) -> float:
        return 1.0 / size(work.target)

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        return difference


@dataclass
class SecondOrder(_InfluenceUpdate):
    """``theta <- theta - step * (C + lambda I)^-1 d``, d being the mean gradient difference of the points.

    C is the curvature of the mean loss on the corrected data, and d the points' gradient differences summed and
    divided by the number of training points.

    Args:
        solver: of the linear system; its residual is reported for every step. A solution that diverged is not
            applied.
        kind: curvature, ``"ggn"`` or ``"hessian"``.
        damping: multiple of the identity added to C, on top of the solver's own.
        steps: most steps to take.
        step: size of a step, 1 for the update as published, or ``"auto"`` for a line search on the corrected loss.
        points, points_per_step: as for :class:`FirstOrder`.
        curvature_samples: points that C is taken over, drawn at random once; None for all of them.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 7.
    """

    solver: Solver = field(default_factory=lambda: LiSSA(damping=1e-2, batch_size=None, recursion_depth=20))
    kind: str = "ggn"
    damping: float = 0.0
    steps: int = field(default=3, kw_only=True)
    step: float | str = "auto"
    curvature_samples: int | None = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_size("step", self.step)

    def _fixed_step(self) -> float | None:
        return _check_size("step", self.step)

    def _first_guess(self, work: Work) -> float:
        return 1.0

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        operator = CurvatureOperator(
            work.model,
            self.loss_fn,
            self._curvature_data(work),
            kind=self.kind,
            damping=self.damping,
            params=work.names,
            batch_size=max(self.batch_size, 1024),
        )
        try:
            solution = self.solver.solve(operator, scaled(difference, 1 / size(work.request.dataset)))
        except IndefiniteSystem as reason:
            raise NotApplied(str(reason)) from reason
        work.gradient_evaluations += operator.evaluations
        record.update(
            residual=solution.residual,
            converged=solution.converged,
            iterations=solution.iterations,
            scale=solution.scale,
        )
        if solution.diverged:
            raise NotApplied(
                f"{type(self.solver).__name__} diverged: {solution.stopped}, residual {solution.residual:.3g}"
            )
        return solution.x

    def _curvature_data(self, work: Work) -> Data:
        n = size(work.target)
        if self.curvature_samples is None or self.curvature_samples >= n:
            return work.target
        generator = torch.Generator().manual_seed(self.seed)
        return work.target[torch.randperm(n, generator=generator)[: self.curvature_samples]]
