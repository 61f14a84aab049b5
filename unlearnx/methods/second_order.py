"""The second-order influence update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from unlearnx._calls import check_call
from unlearnx._checks import check_above_zero, check_at_least_one
from unlearnx._copies import independent
from unlearnx._data import as_dataset, drawn, size
from unlearnx._pace import Pace
from unlearnx._vectors import Vector, scaled
from unlearnx._wrappers import rewrapped
from unlearnx.curvature import CurvatureOperator, IndefiniteSystem, LiSSA
from unlearnx.curvature.operators import check_curvature
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.solvers import Solution, Solver
from unlearnx.methods.base import Findings, FirstDirection, NotApplied, Work
from unlearnx.methods.frozen_features import request_on_features
from unlearnx.methods.influence import InfluenceUpdate
from unlearnx.methods.outcome import Outcome
from unlearnx.methods.request import Request
from unlearnx.methods.solving import check_solver, checked_direction, curvature_operator, damping_of, solved_direction
from unlearnx.methods.stored import FromFactors, training_samples


@dataclass
class SecondOrder(InfluenceUpdate, FromFactors):
    """``theta <- theta - step * (C + lambda I)^-1 d``, with the curvature C and the gradient difference d.

    C is the curvature of the mean loss on the corrected data (or the retain set), and d the sum of the gradient
    differences of the samples of the step, divided by the number of training samples.

    Args:
        solver: solver of the linear system; its residual is reported for every step. A diverged solution is not
            applied.
        kind: curvature, ``"ggn"`` or ``"hessian"``.
        damping: lambda, in addition to the solver's own damping. None is 0 for a solver that does without, and a
            hundredth of the largest eigenvalue of C for one that does not: EK-FAC, K-FAC, what they precondition, and
            :class:`NystromPCG`.
        steps: most steps to take.
        step: step size: 1 is the published update; ``"auto"`` is a line search on the loss of the corrected data, or as
            `forget_loss` says.
        points, points_per_step, forget_loss: as for :class:`FirstOrder`.
        curvature_samples: number of samples that C is computed on, drawn at random once; None for all of them.
        factors: of the training data, in the place of the solver and of C; no retain set is needed. A damping of None
            is a hundredth of their largest eigenvalue. No residual certifies the direction. Without held-out data
            there is one step, of size 1 for ``"auto"``.

    Raises:
        ValueError: a number is out of range, the kind is unknown, `solver` is not a solver, or the damping is 0 for one
            that needs it, or with factors.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 7.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> method = SecondOrder(ConjugateGradient(), damping=0.1, step=1)
        >>> outcome = method(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.info["steps"][0]["residual"] < 0.01
        True
    """

    _strength: ClassVar[str | None] = "step"

    solver: Solver = field(default_factory=lambda: LiSSA(damping=1e-2, batch_size=None, recursion_depth=20))
    kind: str = "ggn"
    damping: float | None = None
    steps: int = field(default=3, kw_only=True)
    step: float | str = "auto"
    curvature_samples: int | None = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_curvature(self.kind, self.damping)
        if self.factors is None:
            check_solver(self.solver, self.damping)
        else:
            check_above_zero(damping=self.damping)
        check_at_least_one(curvature_samples=self.curvature_samples)

    def _first_guess(self, work: Work) -> float:
        return 1.0

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        n = training_samples(work)
        if self.factors is not None:
            record["solver"] = "solved with stored factors"
            return self.factors.solve(scaled(difference, 1 / n), damping_of(self.damping, self.factors.largest))
        operator = self._operator(work.model, work.names, work.target)
        return solved_direction(self.solver, operator, scaled(difference, 1 / n), work, record)

    def many(self, model: nn.Module, requests: Sequence[Request]) -> list[Outcome]:
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
        if self.factors is not None:  # there is nothing to solve together
            return [self(model, request) for request in requests]
        check_call(model, self.loss_fn, dataset, name="request")
        names = self._names(model)
        frozen_prefix, pace = FrozenPrefix(model, names, dataset), self._pace(model, requests[0])
        settings: dict[str, Any] = {"batch_size": pace.batch_size, "dtype": pace.autocast}
        features = as_dataset(frozen_prefix.features(dataset, **settings))
        own = replace(self, params=names)  # the head has the same parameter names
        on_features = [
            request_on_features(request, frozen_prefix, features=features, **settings) for request in requests
        ]
        outcomes = []
        own_pace = own._head_pace(frozen_prefix, dataset, pace)
        directions = own._first_directions(frozen_prefix.head, features, on_features, own_pace)
        for request, in_features, first_direction in zip(requests, on_features, directions, strict=True):
            level = own._level(model, request, pace)
            findings = Findings(level, own_pace, first_direction)
            outcome = own._on_copy(frozen_prefix.head, in_features, findings)
            outcome.model = _with_parameters(model, outcome.model, names)
            outcome.info["pace"] = pace.described(own_pace)
            self._judge(model, outcome, request, level, pace)
            outcome.gradient_evaluations += outcome.info["steps"][0]["points"] if outcome.info["steps"] else 0
            outcomes.append(outcome)
        return outcomes

    def _first_directions(
        self, model: nn.Module, data: Dataset[Any], requests: list[Request], pace: Pace
    ) -> list[FirstDirection]:
        """Functions that return the first directions of the requests, all solved with the curvature on `data`."""
        names = self._names(model)
        records: list[dict[str, Any]] = [{} for _ in requests]
        differences = [
            self._difference(Work(self, model, request, names, pace), torch.Generator().manual_seed(self.seed), record)
            for request, record in zip(requests, records, strict=True)
        ]
        known = [d for d in differences if d is not None]
        parts: Iterator[Solution | Exception] = iter(())
        if known:
            stacked = {name: torch.stack([d[name] for d in known]) / size(data) for name in known[0]}
            try:
                operator = self._operator(model, names, data)
                solution = self.solver.solve(operator, stacked)
                parts = iter([solution.part(k) for k in range(len(known))])
            except (IndefiniteSystem, NotApplied) as reason:
                parts = repeat(reason)

        def first_direction(points: dict[str, Any], part: Solution | Exception | None, record: dict[str, Any]):
            record.update(points)
            if isinstance(part, Exception):
                raise NotApplied(str(part))
            return None if part is None else checked_direction(self.solver, part, record)

        return [
            partial(first_direction, record, None if difference is None else next(parts))
            for record, difference in zip(records, differences, strict=True)
        ]

    def _operator(self, model: nn.Module, names: list[str], data: Dataset[Any]) -> CurvatureOperator:
        if self.curvature_samples is not None:
            data = drawn(data, self.curvature_samples, torch.Generator().manual_seed(self.seed), self.batch_size)
        return curvature_operator(self, self.solver, model, names, data, self.kind, self.damping)


def _same(a: Dataset[Any], b: Dataset[Any]) -> bool:
    if type(a) is type(b) is TensorDataset:  # each request wraps the tensors in a dataset of its own
        return all(s is t for s, t in zip(a.tensors, b.tensors, strict=True))
    return a is b


def _with_parameters(model: nn.Module, source: nn.Module, names: list[str]) -> nn.Module:
    """A copy of `model` with the parameters of these names from `source`."""
    result = independent(model)
    with torch.no_grad():
        for name in names:
            result.get_parameter(name).copy_(source.get_parameter(name))
    return rewrapped(result, model)
