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
from unlearnx._wrappers import rewrapped
from unlearnx.curvature import CurvatureOperator, IndefiniteSystem, LiSSA, grad_difference
from unlearnx.curvature.operators import check_curvature
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.solvers import Solution, Solver
from unlearnx.methods.base import FirstDirection, Method, NotApplied, Outcome, Work, allowed_increase, chance_loss
from unlearnx.methods.request import Request
from unlearnx.metrics import mean_loss, predict

LINE_SEARCH_SAMPLES = 10_000  # most samples of the corrected data (or retain set) that a line search measures
MAX_CHECK_HALVINGS = 4  # of a step found by line search whose loss on all of these data turns out too high


@dataclass(kw_only=True)
class InfluenceUpdate(Method):
    """Steps ``theta <- theta - step * direction``, with a direction from the gradient difference of the forget set.

    Subclasses define the direction and the step size. A step after which the loss on the corrected data (or the retain
    set) is not finite, or not lower, is undone and ends the run. In a removal with a given step size, or with steps
    towards ``forget_loss``, the loss may rise by ``max_increase``.
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
        """The step size given by the user; None for a line search."""
        raise NotImplementedError

    def _first_guess(self, work: Work) -> float:
        """The step size at which the first line search starts."""
        raise NotImplementedError

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        """Direction of a step, from the summed gradient differences of its samples."""
        raise NotImplementedError

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        parameters = _ChosenParameters(work.model, work.names)
        search_loss = self._search_loss(work, generator)
        goal = self._forget_loss_goal(work)
        info["steps"] = []
        target = "retain set" if work.request.corrected is None else "corrected data"
        loss, guess, steps_taken = work.initial_loss, self._first_guess(work), 0
        with progress_bar(type(self).__name__, self.steps, self.progress) as advance:
            for _ in range(self.steps):
                if goal is not None and steps_taken and (forgotten := self._loss_of_forget_set(work)) >= goal:
                    info["stopped"] = f"the forget set has a loss of {forgotten:.6g}"
                    break
                record: dict[str, Any] = {}
                info["steps"].append(record)
                start = parameters.read()
                find_direction = work.first_direction or partial(self._find_direction, work, generator)
                work.first_direction = None
                try:
                    direction = find_direction(record)
                    if direction is None:
                        info["steps"].pop()
                        info["stopped"] = "the model predicts every corrected label already"
                        break
                    step = self._fixed_step()
                    halvings = 0
                    if step is None:
                        step = self._searched_step(
                            work,
                            partial(parameters.loss_after, search_loss, start, direction),
                            partial(parameters.loss_after, partial(self._loss_of_forget_set, work), start, direction),
                            guess,
                            goal,
                        )
                        if step == 0:
                            if goal is None:
                                raise NotApplied(f"no step along the direction lowers the loss on the {target}")
                            raise NotApplied(
                                f"every step along the direction raises the loss on the {target} to "
                                f"{self._loss_limit(work):.6g} or more"
                            )
                        guess, halvings = step, MAX_CHECK_HALVINGS
                    limit = self._loss_limit(work) if goal is not None or self._may_raise_loss(work) else loss
                    new_loss = parameters.loss_after(work.corrected_loss, start, direction, step)
                    while halvings and not new_loss < limit:
                        # The step is good for the samples of the line search, but not for all of the data.
                        step, halvings = step / 2, halvings - 1
                        new_loss = parameters.loss_after(work.corrected_loss, start, direction, step)
                    record.update(step=step, loss=new_loss)
                    if not (math.isfinite(new_loss) and new_loss < limit):
                        raise NotApplied(
                            f"a step of size {step:.3g} would change the loss on the {target} from {loss:.6g} to "
                            f"{new_loss:.6g}"
                        )
                except NotApplied as reason:
                    parameters.write(start, {}, 0.0)
                    info["stopped"] = str(reason)
                    break
                loss, steps_taken = new_loss, steps_taken + 1
                advance(1)
        if not steps_taken:
            raise NotApplied(info["stopped"])

    def _searched_step(
        self,
        work: Work,
        loss_at: Callable[[float], float],
        forgotten_at: Callable[[float], float],
        guess: float,
        goal: float | None,
    ) -> float:
        """The step size found by line search; 0 if no step is good."""
        if goal is None:
            return line_search(loss_at, guess)
        return forgetting_step(loss_at, forgotten_at, guess, limit=self._loss_limit(work), goal=goal)

    def _may_raise_loss(self, work: Work) -> bool:
        """Whether steps may raise the loss on the retain set: in removals with a given step size."""
        return work.request.corrected is None and self._fixed_step() is not None

    def _loss_limit(self, work: Work) -> float:
        """The largest loss allowed on the corrected data, or on the retain set."""
        return work.initial_loss + allowed_increase(work.request, self.max_increase)

    def _forget_loss_goal(self, work: Work) -> float | None:
        """The loss that the forget set has to reach; None if steps are to lower the loss on the corrected data."""
        if work.request.corrected is not None or self._fixed_step() is not None:
            return None
        if self.forget_loss is not None:
            return self.forget_loss
        x, y = materialize(work.request.forget_set)
        retained = work.target.tensors[1]
        if y.is_floating_point() or torch.isin(y, retained.to(y.device)).any():
            return None
        return chance_loss(work, x, y)

    def _loss_of_forget_set(self, work: Work) -> float:
        """Mean loss of the forget set."""
        data = work.request.forget_set
        return mean_loss(work.model, self.loss_fn, data, batch_size=self.batch_size, autocast=self.autocast)

    def _find_direction(self, work: Work, generator: torch.Generator, record: dict[str, Any]) -> Vector | None:
        difference = self._difference(work, generator, record)
        return None if difference is None else self._direction(work, difference, record)

    def _difference(self, work: Work, generator: torch.Generator, record: dict[str, Any]) -> Vector | None:
        """Summed gradient differences of the samples of a step; None if there are none."""
        old, new = _samples_of_step(work, self.points, self.points_per_step, generator)
        record["points"] = len(old)  # type: ignore[arg-type]
        if not record["points"]:
            return None
        work.gradient_evaluations += size(old)
        difference = grad_difference(work.model, self.loss_fn, old, new, params=work.names, batch_size=self.batch_size)
        return difference if new is not None else scaled(difference, -1.0)  # a removal has no new samples: 0 - grad

    def _search_loss(self, work: Work, generator: torch.Generator) -> Callable[[], float]:
        n = size(work.target)
        chosen = torch.randperm(n, generator=generator)[:LINE_SEARCH_SAMPLES]
        sample = TensorDataset(*work.target[chosen]) if n > LINE_SEARCH_SAMPLES else work.target

        def loss() -> float:
            return mean_loss(work.model, self.loss_fn, sample, batch_size=self.batch_size, autocast=self.autocast)

        return loss


class _ChosenParameters:
    """Reads and writes the chosen parameters of a model."""

    def __init__(self, model: torch.nn.Module, names: list[str]):
        own = dict(model.named_parameters())
        self.params = {name: own[name] for name in names}

    def read(self) -> Vector:
        return {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def write(self, start: Vector, direction: Vector, step: float) -> None:
        """Set the parameters to ``start - step * direction``."""
        for name, p in self.params.items():
            # For step 0, start itself: 0 * direction is NaN where the direction is infinite.
            p.copy_(torch.add(start[name], direction[name], alpha=-step) if step else start[name])

    def loss_after(self, loss: Callable[[], float], start: Vector, direction: Vector, step: float) -> float:
        """The value of `loss` after a step."""
        self.write(start, direction, step)
        return loss()


def line_search(loss_at: Callable[[float], float], first: float, *, max_trials: int = 40) -> float:
    """The step of lowest loss among ``first * 2^k``, found by doubling or halving; 0 if no step lowers the loss."""
    best, lowest = 0.0, loss_at(0.0)
    step = first
    loss = loss_at(step)
    factor = 2.0 if loss < lowest else 0.5
    for _ in range(max_trials):
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
    max_trials: int = 40,
) -> float:
    """The smallest step of ``first * 2^k`` after which the loss of the forget set is at least `goal`.

    If the loss of the retain set reaches `limit` before that, the largest step at which it does not, or 0.
    """
    if not loss_at(first) < limit:  # also true for NaN
        return next((step for k in range(1, max_trials) if loss_at(step := first / 2**k) < limit), 0.0)
    step = first
    if forgotten_at(step) < goal:
        for _ in range(max_trials):
            if not loss_at(2 * step) < limit:
                break
            step *= 2
            if forgotten_at(step) >= goal:
                break
        return step
    for _ in range(max_trials):
        if forgotten_at(step / 2) < goal:
            break
        step /= 2
    return step


def _samples_of_step(work: Work, kind: str, limit: int | None, generator: torch.Generator) -> tuple[Data, Data | None]:
    """The samples of one step, possibly none, as the model learned them and as corrected (None in a removal)."""
    request = work.request
    x, y = work.target.tensors
    # The prediction can replace the old label, but not old features, and not a continuous target.
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


def solved_direction(
    solver: Solver, operator: CurvatureOperator, difference: Vector, work: Work, record: dict[str, Any]
) -> Vector:
    """The direction ``operator^-1 difference``; adds its cost to `work` and the solver's results to `record`.

    Raises:
        NotApplied: the solver diverged, or the matrix is not positive definite.
    """
    try:
        solution = solver.solve(operator, difference)
    except IndefiniteSystem as reason:
        raise NotApplied(str(reason)) from reason
    work.gradient_evaluations += operator.evaluations
    return checked_direction(solver, solution, record)


def checked_direction(solver: Solver, solution: Solution, record: dict[str, Any]) -> Vector:
    """The solution's direction; adds residual, convergence and iterations to `record`.

    Raises:
        NotApplied: the solver diverged.
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
    """The step size, checked; None for "auto"."""
    if value == "auto":
        return None
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number > 0 or 'auto'")
    return float(value)


def check_solver(solver: Solver) -> None:
    """Refuse a `solver` that is not a Solver."""
    if not isinstance(solver, Solver):
        raise ValueError(f"solver is {solver!r}, expected a Solver such as LiSSA() or ConjugateGradient()")


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
    """``theta <- theta - step * (C + lambda I)^-1 d``, with the curvature C and the gradient difference d.

    C is the curvature of the mean loss on the corrected data (or the retain set), and d the sum of the gradient
    differences of the samples of the step, divided by the number of training samples.

    Args:
        solver: solver of the linear system; its residual is reported for every step. A diverged solution is not
            applied.
        kind: curvature, ``"ggn"`` or ``"hessian"``.
        damping: lambda, in addition to the solver's own damping.
        steps: most steps to take.
        step: step size: 1 is the published update; ``"auto"`` is a line search on the loss of the corrected data, or as
            `forget_loss` says.
        points, points_per_step, forget_loss: as for :class:`FirstOrder`.
        curvature_samples: number of samples that C is computed on, drawn at random once; None for all of them.

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
        return solved_direction(self.solver, operator, scaled(difference, 1 / size(work.request.dataset)), work, record)

    def many(self, model: torch.nn.Module, requests: Sequence[Request]) -> list[Outcome]:
        """Apply the method to `model` for each of several requests separately, solving all first steps together.

        The curvature of the first steps is that of the original data, the same for all requests. Later steps start
        from different models and are solved one by one. Seconds and gradient evaluations of an outcome do not include
        the common solution.

        Args:
            model: as for a single request; it is not changed.
            requests: requests on the same dataset.

        Returns:
            An outcome for each request, in order.

        Raises:
            ValueError: there are no requests, or their datasets differ; else as for a single request.
        """
        if not requests:
            raise ValueError("requests: is empty, expected at least one")
        dataset = requests[0].dataset
        if not all(_same(request.dataset, dataset) for request in requests):
            raise ValueError("requests: have different datasets, expected the same dataset object in all of them")
        check_call(model, self.loss_fn, dataset, name="request")
        names = self._names(model)
        frozen_prefix = FrozenPrefix(model, names, dataset)
        features = TensorDataset(*materialize(frozen_prefix.features(dataset, batch_size=self.batch_size)))
        own = replace(self, params=names)  # the head has the same parameter names
        on_features = [request.on(features, frozen_prefix, batch_size=self.batch_size) for request in requests]
        outcomes = []
        for request, first_direction in zip(
            on_features, own._first_directions(frozen_prefix.head, features, on_features), strict=True
        ):
            outcome = own._on_copy(frozen_prefix.head, request, first_direction)
            outcome.model = _with_parameters(model, outcome.model, names)
            outcome.gradient_evaluations += outcome.info["steps"][0]["points"] if outcome.info["steps"] else 0
            outcomes.append(outcome)
        return outcomes

    def _first_directions(
        self, model: torch.nn.Module, data: TensorDataset, requests: list[Request]
    ) -> list[FirstDirection]:
        """Functions that return the first directions of the requests, all solved with the curvature on `data`."""
        names = self._names(model)
        records: list[dict[str, Any]] = [{} for _ in requests]
        differences = [
            self._difference(Work(self, model, request, names), torch.Generator().manual_seed(self.seed), record)
            for request, record in zip(requests, records, strict=True)
        ]
        known = [d for d in differences if d is not None]
        parts: Iterator[Solution | IndefiniteSystem] = iter(())
        if known:
            operator = self._operator(model, names, data)
            stacked = {name: torch.stack([d[name] for d in known]) / size(data) for name in known[0]}
            try:
                solution = self.solver.solve(operator, stacked)
                parts = iter([solution.part(k) for k in range(len(known))])
            except IndefiniteSystem as reason:
                parts = repeat(reason)

        def first_direction(points: dict[str, Any], part: Solution | IndefiniteSystem | None, record: dict[str, Any]):
            record.update(points)
            if isinstance(part, IndefiniteSystem):
                raise NotApplied(str(part))
            return None if part is None else checked_direction(self.solver, part, record)

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
    if type(a) is type(b) is TensorDataset:  # each request wraps the tensors in a dataset of its own
        return all(s is t for s, t in zip(a.tensors, b.tensors, strict=True))
    return a is b


def _with_parameters(model: torch.nn.Module, source: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """A copy of `model` with the parameters of these names from `source`."""
    result = independent(model)
    with torch.no_grad():
        for name in names:
            result.get_parameter(name).copy_(source.get_parameter(name))
    return rewrapped(result, model)
