"""Influence updates: steps along directions found from gradients, repeated and checked one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Subset

from unlearnx._batches import Nest, joined
from unlearnx._checks import check_at_least_one, check_at_least_zero
from unlearnx._data import Data, drawn, size
from unlearnx._known_labels import label_batches
from unlearnx._labels import is_causal, predictions
from unlearnx._losses import SampleLoss
from unlearnx._progress import progress_bar
from unlearnx._sources import Samples, relabelled
from unlearnx._vectors import Vector, scaled
from unlearnx.curvature import grad_difference
from unlearnx.methods.base import Method, NotApplied, Work, allowed_increase, chance_loss
from unlearnx.methods.chosen_parameters import ChosenParameters
from unlearnx.methods.step_size import StepTaker, check_size
from unlearnx.metrics import mean_loss
from unlearnx.metrics.outputs import each_batch

FORGOTTEN = "the forget set is forgotten"
LINE_SEARCH_SAMPLES = 10_000  # most samples of the corrected data (or retain set) that a line search measures


@dataclass(kw_only=True)
class InfluenceUpdate(Method):
    """Steps ``theta <- theta - step * direction``, with a direction from the gradient difference of the forget set.

    Subclasses define the direction and name the field of the step size. A step after which the loss on the corrected
    data (or the retain set) is not finite, or not lower, is undone and ends the run. In a removal with a given step
    size, or with steps towards ``forget_loss``, the loss may rise by ``max_increase``.
    """

    _exact: ClassVar[bool] = True

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
        self._fixed_step()  # refuses what is no step size

    def _fixed_step(self) -> float | None:
        """The step size given by the user; None for a line search."""
        assert self._strength is not None, "subclasses name the field"
        return check_size(self._strength, getattr(self, self._strength))

    def _first_guess(self, work: Work) -> float:
        """The step size at which the first line search starts."""
        raise NotImplementedError

    def _direction(self, work: Work, difference: Vector, record: dict[str, Any]) -> Vector:
        """Direction of a step, from the summed gradient differences of its samples."""
        raise NotImplementedError

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        taker = self._step_taker(work, generator)
        taken, info["steps"] = 0, []
        with progress_bar(type(self).__name__, self.steps, self.progress) as advance:
            while taken < (self.steps if work.measures else 1):
                is_done = taken and taker.forgotten is not None and taker.forgotten()
                stopped = FORGOTTEN if is_done else self._step(work, taker, generator, info["steps"])
                if stopped is not None:
                    info["stopped"] = stopped
                    break
                taken += 1
                advance(1)
        if not taken:
            raise NotApplied(info["stopped"])

    def _step(
        self, work: Work, taker: StepTaker, generator: torch.Generator, records: list[dict[str, Any]]
    ) -> str | None:
        """Take a step and add a record of it. Returns None, or why there is no step to take."""
        record: dict[str, Any] = {}
        records.append(record)
        find_direction = work.first_direction or partial(self._find_direction, work, generator)
        work.first_direction = None
        try:
            direction = find_direction(record)
            if direction is None:
                records.pop()
                return "the model predicts every corrected label already"
            taker.take(direction, record)
        except NotApplied as reason:
            return str(reason)
        return None

    def _step_taker(self, work: Work, generator: torch.Generator) -> StepTaker:
        removal = work.request.corrected is None
        fixed, forgotten = self._fixed_step(), self._forgotten(work)
        if not work.measures and fixed is None and forgotten is None:
            fixed = self._first_guess(work)  # nothing is at hand on which a line search could measure
        may_raise = forgotten is not None or (removal and fixed is not None)
        return StepTaker(
            parameters=ChosenParameters(work.model, work.names),
            fixed=fixed,
            guess=self._first_guess(work),
            loss=work.initial_loss,
            forgotten=forgotten,
            limit=work.initial_loss + allowed_increase(work.request, self.max_increase) if may_raise else None,
            target="retain set" if removal else "corrected data",
            measure=work.corrected_loss,
            estimate=self._estimate(work, generator),
        )

    def _estimate(self, work: Work, generator: torch.Generator) -> Callable[[], float]:
        if not work.measures:
            return work.corrected_loss
        data = drawn(work.target, LINE_SEARCH_SAMPLES, generator, self.batch_size)
        return partial(mean_loss, work.model, self._harm, data, **work.pace.settings)

    def _loss_to_forget(self, work: Work) -> float:
        return mean_loss(work.model, self.loss_fn, work.request.forget_set, **work.pace.settings)

    @property
    def _finds_strength(self) -> bool:
        return self._fixed_step() is None and self.forget_loss is None

    def _forgotten(self, work: Work) -> Callable[[], bool] | None:
        """Says whether the forget set is forgotten; None if steps are to lower the loss on the corrected data."""
        if work.request.corrected is not None or self._fixed_step() is not None:
            return None
        if work.gauge is not None and not work.gauge.nothing_to_forget:
            return work.gauge.forgotten
        goal = self.forget_loss if self.forget_loss is not None else self._loss_of_guessing(work)
        return None if goal is None else lambda: self._loss_to_forget(work) >= goal

    def _loss_of_guessing(self, work: Work) -> float | None:
        """Where no label of the forget set stays, as of a class, the loss of guessing."""
        if not work.measures:
            return None
        forgotten = _classes(work.request.forget_set, work.pace.batch_size)
        if forgotten is None:
            return None
        given = forgotten[forgotten != SampleLoss(self.loss_fn).ignore_index]
        for y in label_batches(work.target, work.pace.batch_size):
            if not _are_classes(y) or torch.isin(y.cpu().long(), given).any():
                return None
        return chance_loss(work, work.request.forget_set)

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
        difference = grad_difference(
            work.model, self.loss_fn, old, new, params=work.names, batch_size=work.pace.batch_size
        )
        return difference if new is not None else scaled(difference, -1.0)  # a removal has no new samples: 0 - grad


def _classes(data: Data, batch_size: int) -> Tensor | None:
    """The labels that occur, each once; None where they are no classes."""
    found = []
    for y in label_batches(data, batch_size):
        if not _are_classes(y):
            return None
        found.append(y.unique().cpu().long())
    return torch.cat(found).unique()


def _are_classes(y: Nest) -> bool:
    return isinstance(y, Tensor) and not y.is_floating_point()


def _samples_of_step(work: Work, kind: str, limit: int | None, generator: torch.Generator) -> tuple[Data, Data | None]:
    """The samples of one step, possibly none, as the model learned them and as corrected (None in a removal)."""
    request = work.request
    ignore_index = SampleLoss(work.method.loss_fn).ignore_index
    if kind == "forget" or not request.labels_only or not _classes_alone(work, ignore_index):
        old, new = request.forget_set, request.correction
        if limit is None or limit >= size(old):
            return old, new
        chosen = torch.randperm(size(old), generator=generator)[:limit].tolist()
        return Subset(old, chosen), None if new is None else Subset(new, chosen)
    wrong, predicted = _mistakes(work, ignore_index)
    if limit is not None and limit < len(wrong):
        some = torch.randperm(len(wrong), generator=generator)[:limit]
        wrong, predicted = wrong[some], predicted[some]
    corrected = Subset(work.target, wrong.tolist())
    return relabelled(corrected, predicted), corrected


def _classes_alone(work: Work, ignore_index: int) -> bool:
    """Whether a prediction can replace the old label: it cannot replace a continuous target, or a token in a text."""
    x, y = Samples(work.target).read(slice(0, work.method.batch_size))
    return isinstance(y, Tensor) and not y.is_floating_point() and not is_causal(x, y, ignore_index)


def _mistakes(work: Work, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The samples of the target that the model gives another label than theirs: their indices, and these labels."""

    def mistakes(output: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        predicted = predictions(output, y, ignore_index).where(y != ignore_index, y)
        wrong = (predicted != y).reshape(len(y), -1).any(1)
        return wrong.cpu(), predicted[wrong].cpu()

    found = each_batch((work.model,), work.target, work.pace.batch_size, work.pace.autocast, mistakes)
    return torch.cat([wrong for wrong, _ in found]).nonzero().flatten(), joined([labels for _, labels in found])
