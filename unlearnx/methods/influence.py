"""First- and second-order influence updates, repeated and checked step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from unlearnx._calls import check_call
from unlearnx._checks import check_at_least_one, check_at_least_zero
from unlearnx._copies import independent
from unlearnx._data import Data, materialize, size
from unlearnx._progress import progress_bar
from unlearnx._vectors import Vector, scaled
from unlearnx.curvature import CurvatureOperator, IndefiniteSystem, LiSSA, grad_difference
from unlearnx.curvature.operators import check_curvature
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.solvers import Solution, Solver
from unlearnx.methods.base import FirstDirection, Method, NotApplied, Outcome, Work, allowed_increase, chance_loss
from unlearnx.methods.request import Request
from unlearnx.metrics import mean_loss, predict

SEARCH_SAMPLES = 10_000  # of the corrected data, for the line search; every step is then checked on all of it
BACKTRACKS = 4  # halvings of a searched step that fails this check


@dataclass(kw_only=True)
class InfluenceUpdate(Method):
    """Steps ``theta <- theta - step * direction`` along the gradient difference of points to correct.

    Subclasses choose the direction and the size of a step. A step after which the loss on the corrected data is
    not finite, or not lower, is taken back and ends the run; a step of a given size in a removal, or one on the way to
    ``forget_loss``, may raise it by ``max_increase``.
    """

    steps: int = 1
    points: str = "predicted"
    points_per_step: int | None = None
    forget_loss: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points not in ("predicted", "forget"):
            raise ValueError(f"points is {self.points!r}, expected 'predicted' or 'forget'")
        check_at_least_one(steps=self.steps, points_per_step=self.points_per_step)
        check_at_least_zero(forget_loss=self.forget_loss)

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
        goal = self._goal(work)
        info["steps"] = []
        loss, guess, taken = work.initial_loss, self._first_guess(work), 0
        with progress_bar(type(self).__name__, self.steps, self.progress) as advance:
            for _ in range(self.steps):
                if goal is not None and taken and (forgotten := self._forgotten(work)) >= goal:
                    info["stopped"] = f"the points to forget have a loss of {forgotten:.6g}"
                    break
                record: dict[str, Any] = {}
                info["steps"].append(record)
                start = position.read()
                find_direction = work.first_direction or partial(self._find_direction, work, generator)
                work.first_direction = None
                try:
                    direction = find_direction(record)
                    if direction is None:
                        info["steps"].pop()
                        info["stopped"] = "the model agrees with every corrected label"
                        break
                    step = self._fixed_step()
                    halvings = 0
                    if step is None:
                        step = self._searched(
                            work,
                            partial(position.loss_after, search_loss, start, direction),
                            partial(position.loss_after, partial(self._forgotten, work), start, direction),
                            guess,
                            goal,
                        )
                        if step == 0:
                            what = "lowers the corrected loss" if goal is None else "is borne by the retained points"
                            raise NotApplied(f"no step along the direction {what}")
                        guess, halvings = step, BACKTRACKS
                    bearable = self._limit(work) if goal is not None or self._spends(work) else loss
                    reached = position.loss_after(work.corrected_loss, start, direction, step)
                    while halvings and not reached < bearable:
                        step, halvings = step / 2, halvings - 1  # best for the sample, too far for all of the data
                        reached = position.loss_after(work.corrected_loss, start, direction, step)
                    record.update(step=step, loss=reached)
                    if not (math.isfinite(reached) and reached < bearable):
                        raise NotApplied(
                            f"a step of size {step:.3g} would take the corrected loss from {loss:.6g} to {reached:.6g}"
                        )
                except NotApplied as reason:
                    position.write(start, {}, 0.0)
                    info["stopped"] = str(reason)
                    break
                loss, taken = reached, taken + 1
                advance(1)
        if not taken:
            raise NotApplied(info["stopped"])

    def _searched(
        self,
        work: Work,
        loss_at: Callable[[float], float],
        forgotten_at: Callable[[float], float],
        guess: float,
        goal: float | None,
    ) -> float:
        """The size of a step, from the losses that steps lead to; 0 where there is none."""
        if goal is None:
            return line_search(loss_at, guess)
        return forgetting_step(loss_at, forgotten_at, guess, limit=self._limit(work), goal=goal)

    def _spends(self, work: Work) -> bool:
        """Whether a step may cost the retained points something: one of a given size, away from what is to forget."""
        return work.request.corrected is None and self._fixed_step() is not None

    def _limit(self, work: Work) -> float:
        """The loss on the corrected data that is still borne."""
        return work.initial_loss + allowed_increase(work.request, self.max_increase)

    def _goal(self, work: Work) -> float | None:
        """The loss of the points to forget that steps have to reach; None where they lower the corrected loss."""
        if work.request.corrected is not None or self._fixed_step() is not None:
            return None
        if self.forget_loss is not None:
            return self.forget_loss
        x, y = materialize(work.request.forget_set)
        retained = work.target.tensors[1]
        if y.is_floating_point() or torch.isin(y, retained.to(y.device)).any():
            return None
        return chance_loss(work, x, y)

    def _forgotten(self, work: Work) -> float:
        """Mean loss of the points to forget."""
        data = work.request.forget_set
        return mean_loss(work.model, self.loss_fn, data, batch_size=self.batch_size, autocast=self.autocast)

    def _find_direction(self, work: Work, generator: torch.Generator, record: dict[str, Any]) -> Vector | None:
        difference = self._difference(work, generator, record)
        return None if difference is None else self._direction(work, difference, record)

    def _difference(self, work: Work, generator: torch.Generator, record: dict[str, Any]) -> Vector | None:
        """Summed gradient differences of the points that a step corrects; None where there are none."""
        old, new = _points(work, self.points, self.points_per_step, generator)
        record["points"] = len(old)  # type: ignore[arg-type]
        if not record["points"]:
            return None
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


def forgetting_step(
    loss_at: Callable[[float], float],
    forgotten_at: Callable[[float], float],
    first: float,
    *,
    limit: float,
    goal: float,
    most: int = 40,
) -> float:
    """The smallest step of ``first * 2^k`` that takes the points to forget to a loss of `goal`.

    Where the loss of the retained points would not stay below `limit` on the way there, the largest step that leaves it
    there; 0 if there is none.
    """
    if not loss_at(first) < limit:  # nor where it is NaN
        return next((step for k in range(1, most) if loss_at(step := first / 2**k) < limit), 0.0)
    step = first
    if forgotten_at(step) < goal:
        for _ in range(most):
            if not loss_at(2 * step) < limit:
                break
            step *= 2
            if forgotten_at(step) >= goal:
                break
        return step
    for _ in range(most):
        if forgotten_at(step / 2) < goal:
            break
        step /= 2
    return step


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
    wrong = (predicted != y).reshape(len(y), -1).any(1).nonzero().flatten()
    if limit is not None and limit < len(wrong):
        wrong = wrong[torch.randperm(len(wrong), generator=generator)[:limit].to(wrong.device)]
    x, y, predicted = x[wrong], y[wrong], predicted[wrong]
    return TensorDataset(x, predicted), TensorDataset(x, y)


def solved(
    solver: Solver, operator: CurvatureOperator, difference: Vector, work: Work, record: dict[str, Any]
) -> Vector:
    """The direction ``operator^-1 difference``; its cost goes to `work`, and what the solver says to `record`.

    Raises:
        NotApplied: the solver diverged, or the system has no positive definite matrix.
    """
    try:
        solution = solver.solve(operator, difference)
    except IndefiniteSystem as reason:
        raise NotApplied(str(reason)) from reason
    work.gradient_evaluations += operator.evaluations
    return checked(solver, solution, record)


def checked(solver: Solver, solution: Solution, record: dict[str, Any]) -> Vector:
    """The solution's direction, after writing to `record` what it is worth.

    Raises:
        NotApplied: it diverged.
    """
    record.update(
        residual=solution.residual,
        converged=solution.converged,
        iterations=solution.iterations,
        solver=solution.stopped,
        scale=solution.scale,
    )
    if solution.diverged:
        raise NotApplied(f"{type(solver).__name__} diverged: {solution.stopped}, residual {solution.residual:.3g}")
    return solution.x


def check_size(name: str, value: float | str) -> float | None:
    """The fixed size of a step, None for "auto"."""
    if value == "auto":
        return None
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number > 0 or 'auto'")
    return float(value)


def check_solver(solver: Solver) -> None:
    """Refuse what is no solver."""
    if not isinstance(solver, Solver):
        raise ValueError(f"solver is {solver!r}, expected one such as LiSSA() or ConjugateGradient()")


@dataclass
class FirstOrder(InfluenceUpdate):
    """``theta <- theta - tau * sum_i (grad loss(corrected_i) - grad loss(learned_i))``, several times.

    Args:
        tau: step size, or ``"auto"`` for a line search at every step: on the corrected loss, or see `forget_loss`.
        steps: most steps to take.
        points: which points a step corrects. ``"predicted"``: all points that the model gets wrong by the corrected
            labels, its own prediction standing for the old label, chosen anew at every step. ``"forget"``: the points
            of the request as they were given; removals and corrections of features always take these.
        points_per_step: most points of one step, drawn at random; None for all of them.
        forget_loss: of removals with steps of automatic size: the mean loss of the points to forget at which they end,
            such as that of points that the model has never seen. Steps are doubled until it is reached, and stay short
            of what ``max_increase`` allows. None for the loss of a guess, log(classes), where no point that stays has
            a label of theirs, as when a class is to be forgotten; otherwise for steps that lower the corrected loss.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 6; ``"predicted"`` as in
    its public code.

    Example:
        >>> x, true = torch.randn(60, 8), torch.arange(60) % 3
        >>> given = true.clone()
        >>> given[:6] = (true[:6] + 1) % 3  # wrong labels
        >>> outcome = FirstOrder(steps=2)(nn.Linear(8, 3), Request.correct((x, given), (x, true)))
        >>> before, after = outcome.info["corrected_loss"]
        >>> after < before
        True
    """

    tau: float | str = "auto"
    steps: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("tau", self.tau)

    def _fixed_step(self) -> float | None:
        return check_size("tau", self.tau)

    def _first_guess(self, work: Work) -> float:
        return 1.0 / size(work.target)

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        return difference


@dataclass
class SecondOrder(InfluenceUpdate):
    """``theta <- theta - step * (C + lambda I)^-1 d``, d being the mean gradient difference of the points.

    C is the curvature of the mean loss on the corrected data, and d the points' gradient differences summed and
    divided by the number of training points.

    Args:
        solver: of the linear system; its residual is reported for every step. A solution that diverged is not
            applied.
        kind: curvature, ``"ggn"`` or ``"hessian"``.
        damping: multiple of the identity added to C, on top of the solver's own.
        steps: most steps to take.
        step: size of a step, 1 for the update as published, or ``"auto"`` for a line search: on the corrected loss, or
            see `forget_loss`.
        points, points_per_step, forget_loss: as for :class:`FirstOrder`.
        curvature_samples: points that C is taken over, drawn at random once; None for all of them.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 7.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> method = SecondOrder(ConjugateGradient(), damping=0.1, step=1)
        >>> outcome = method(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.info["steps"][0]["residual"] < 0.01
        True
    """

    solver: Solver = field(default_factory=lambda: LiSSA(damping=1e-2, batch_size=None, recursion_depth=20))
    kind: str = "ggn"
    damping: float = 0.0
    steps: int = field(default=3, kw_only=True)
    step: float | str = "auto"
    curvature_samples: int | None = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("step", self.step)
        check_solver(self.solver)
        check_curvature(self.kind, self.damping)
        check_at_least_one(curvature_samples=self.curvature_samples)

    def _fixed_step(self) -> float | None:
        return check_size("step", self.step)

    def _first_guess(self, work: Work) -> float:
        return 1.0

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        operator = self._operator(work.model, work.names, work.target)
        return solved(self.solver, operator, scaled(difference, 1 / size(work.request.dataset)), work, record)

    def many(self, model: torch.nn.Module, requests: Sequence[Request]) -> list[Outcome]:
        """Apply the method to `model` for each of several requests by itself, with the first steps solved together.

        The curvature of these first steps is that of the data as they were learned, the same for all requests; later
        steps go on from different models and are solved one by one. An outcome's seconds and gradient evaluations
        are its own, without the common solution's.

        Args:
            model: as for a single request; it is left alone.
            requests: on one and the same dataset.

        Returns:
            An outcome for each request, in order.

        Raises:
            ValueError: there are no requests, or their datasets differ; and as for a single request.
        """
        if not requests:
            raise ValueError("requests: is empty, expected at least one")
        dataset = requests[0].dataset
        if not all(_same(request.dataset, dataset) for request in requests):
            raise ValueError("requests: belong to different datasets, expected the same object in all of them")
        check_call(model, self.loss_fn, dataset, name="request")
        names = self._names(model)
        cut = FrozenPrefix(model, names, dataset)
        features = TensorDataset(*materialize(cut.features(dataset, batch_size=self.batch_size)))
        own = replace(self, params=names)  # the names mean the same in the head
        on_features = [request.on(features, cut, batch_size=self.batch_size) for request in requests]
        outcomes = []
        for request, first_direction in zip(
            on_features, own._first_directions(cut.head, features, on_features), strict=True
        ):
            outcome = own._on_copy(cut.head, request, first_direction)
            outcome.model = _with_parameters(model, outcome.model, names)
            outcome.gradient_evaluations += outcome.info["steps"][0]["points"] if outcome.info["steps"] else 0
            outcomes.append(outcome)
        return outcomes

    def _first_directions(
        self, model: torch.nn.Module, data: TensorDataset, requests: list[Request]
    ) -> list[FirstDirection]:
        """First directions of all requests, from one solution with the curvature on `data`."""
        names = self._names(model)
        records: list[dict[str, Any]] = [{} for _ in requests]
        differences = [
            self._difference(Work(self, model, request, names), torch.Generator().manual_seed(self.seed), record)
            for request, record in zip(requests, records, strict=True)
        ]
        found = [d for d in differences if d is not None]
        parts: Iterator[Solution | IndefiniteSystem] = iter(())
        if found:
            operator = self._operator(model, names, data)
            rows = {name: torch.stack([d[name] for d in found]) / size(data) for name in found[0]}
            try:
                solution = self.solver.solve(operator, rows)
                parts = iter([solution.part(k) for k in range(len(found))])
            except IndefiniteSystem as reason:
                parts = repeat(reason)

        def first_direction(points: dict[str, Any], part: Solution | IndefiniteSystem | None, record: dict[str, Any]):
            record.update(points)
            if isinstance(part, IndefiniteSystem):
                raise NotApplied(str(part))
            return None if part is None else checked(self.solver, part, record)

        return [
            partial(first_direction, record, None if difference is None else next(parts))
            for record, difference in zip(records, differences, strict=True)
        ]

    def _operator(self, model: torch.nn.Module, names: list[str], data: TensorDataset) -> CurvatureOperator:
        n = size(data)
        if self.curvature_samples is not None and self.curvature_samples < n:
            generator = torch.Generator().manual_seed(self.seed)
            data = TensorDataset(*data[torch.randperm(n, generator=generator)[: self.curvature_samples]])
        return CurvatureOperator(
            model,
            self.loss_fn,
            data,
            kind=self.kind,
            damping=self.damping,
            params=names,
            batch_size=max(self.batch_size, 1024),
        )


def _same(a: Dataset[Any], b: Dataset[Any]) -> bool:
    if type(a) is type(b) is TensorDataset:  # requests on the same tensors have datasets of their own
        return all(s is t for s, t in zip(a.tensors, b.tensors, strict=True))
    return a is b


def _with_parameters(model: torch.nn.Module, source: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """A copy of `model` with the parameters of these names from `source`."""
    result = independent(model)
    with torch.no_grad():
        for name in names:
            result.get_parameter(name).copy_(source.get_parameter(name))
    return result
