"""How far an influence update goes along its direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from unlearnx._vectors import Vector
from unlearnx.methods.base import NotApplied

MAX_CHECK_HALVINGS = 4  # of a step found by line search whose loss on all of these data turns out too high


def check_size(name: str, value: float | str) -> float | None:
    """The step size, checked; None for "auto"."""
    if value == "auto":
        return None
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a number > 0 or 'auto'")
    return float(value)


class ChosenParameters:
    """Reads and writes the chosen parameters of a model."""

    def __init__(self, model: nn.Module, names: list[str]):
        own = dict(model.named_parameters())
        self.params = {name: own[name] for name in names}

    def read(self) -> Vector:
        """Copies of their values."""
        return {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def write(self, start: Vector, direction: Vector, step: float) -> None:
        """Set the parameters to ``start - step * direction``."""
        for name, p in self.params.items():
            # For step 0, start itself: 0 * direction is NaN where the direction is infinite.
            alpha = -min(step, torch.finfo(torch.promote_types(p.dtype, torch.float32)).max)
            p.copy_(torch.add(start[name], direction[name], alpha=alpha) if step else start[name])

    def loss_after(self, loss: Callable[[], float], start: Vector, direction: Vector, step: float) -> float:
        """The value of `loss` after a step."""
        self.write(start, direction, step)
        return loss()


@dataclass(kw_only=True)
class StepTaker:
    """Takes steps of a given size, or of one that a line search finds.

    Attributes:
        parameters: the parameters that move.
        fixed: the step size; None for a line search.
        guess: where the next line search starts.
        loss: the loss on the corrected data, or on the retain set, after the last step.
        goal: the loss that the forget set has to reach; None where steps are to lower the loss.
        limit: the loss that no step may reach; None for that after the last step.
        target: what the loss is measured on, in words.
        measure: the loss on all of these data.
        estimate: the loss on a sample of them, for line searches.
        forgotten: the loss on the forget set.
    """

    parameters: ChosenParameters
    fixed: float | None
    guess: float
    loss: float
    goal: float | None
    limit: float | None
    target: str
    measure: Callable[[], float]
    estimate: Callable[[], float]
    forgotten: Callable[[], float]

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
        loss_at = partial(self.parameters.loss_after, self.measure, start, direction)
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
        loss_at, forgotten_at = (
            partial(self.parameters.loss_after, loss, start, direction) for loss in (self.estimate, self.forgotten)
        )
        if self.goal is None:
            step = line_search(loss_at, self.guess)
            failure = f"no step along the direction lowers the loss on the {self.target}"
        else:
            assert self.limit is not None
            step = forgetting_step(loss_at, forgotten_at, self.guess, limit=self.limit, goal=self.goal)
            failure = f"every step along the direction raises the loss on the {self.target} to {self.limit:.6g} or more"
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
