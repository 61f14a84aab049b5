"""How far an influence update goes along its direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from unlearnx._vectors import Vector
from unlearnx.methods.base import NotApplied
from unlearnx.methods.chosen_parameters import ChosenParameters
from unlearnx.methods.strength import given, least_strength

T = TypeVar("T")

MAX_CHECK_HALVINGS = 4  # of a step found by line search whose loss on all of these data turns out too high


def check_size(name: str, value: float | str) -> float | None:
    """The step size, checked; None for "auto"."""
    size = given(name, value)
    if size is not None and not 0 < size < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number > 0 or 'auto'")
    return size


@dataclass(kw_only=True)
class StepTaker:
    """Takes steps of a given size, or of one that a line search finds.

    Attributes:
        parameters: the parameters that move.
        fixed: the step size; None for a line search.
        guess: where the next line search starts.
        loss: the loss on the corrected data, or on the retain set, after the last step.
        forgotten: whether the forget set is forgotten, which steps are to reach; None where they are to lower the loss.
        limit: the loss that no step may reach; None for that after the last step.
        target: what the loss is measured on, in words.
        measure: the loss on all of these data.
        estimate: the loss on a sample of them, for line searches.
    """

    parameters: ChosenParameters
    fixed: float | None
    guess: float
    loss: float
    forgotten: Callable[[], bool] | None
    limit: float | None
    target: str
    measure: Callable[[], float]
    estimate: Callable[[], float]

    def take(self, direction: Vector, record: dict[str, Any]) -> None:
        """Take a step along `direction` from where the parameters are; add its size and its loss to `record`.

        Raises:
            NotApplied: there is no step that may be taken; the parameters are where they were.
        """
        start = self.parameters.read()
        try:
            self._take(start, direction, record)
        except NotApplied:
            self.parameters.write(start, {}, 0.0)
            raise

    def _take(self, start: Vector, direction: Vector, record: dict[str, Any]) -> None:
        step, halvings = self.fixed, 0
        if step is None:
            step, halvings = self._searched(start, direction), MAX_CHECK_HALVINGS
            self.guess = step
        loss_at = partial(self.parameters.after, self.measure, start, direction)
        limit = self.loss if self.limit is None else self.limit
        loss = loss_at(step)
        while halvings and not loss < limit:
            # The step is good for the samples of the line search, but not for all of the data.
            step, halvings = step / 2, halvings - 1
            loss = loss_at(step)
        record.update(step=step, loss=loss)
        if not (math.isfinite(loss) and loss < limit):
            raise NotApplied(
                f"a step of size {step:.3g} would change the loss on the {self.target} from {self.loss:.6g} to "
                f"{loss:.6g}"
            )
        self.loss = loss

    def _searched(self, start: Vector, direction: Vector) -> float:
        def after(measure: Callable[[], T]) -> Callable[[float], T]:
            return partial(self.parameters.after, measure, start, direction)

        loss_at = after(self.estimate)
        if self.forgotten is None:
            step = line_search(loss_at, self.guess)
            failure = f"no step along the direction lowers the loss on the {self.target}"
        else:
            limit = math.inf if self.limit is None else self.limit
            step = least_strength(after(self.forgotten), lambda step: loss_at(step) < limit, self.guess).strength
            failure = f"every step along the direction raises the loss on the {self.target} to {limit:.6g} or more"
        if step == 0:
            raise NotApplied(failure)
        return step


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
