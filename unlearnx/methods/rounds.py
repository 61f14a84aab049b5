"""Training that stops when the forget set is at the level of a model that never saw it, at a rate that adapts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from unlearnx._data import Data, as_dataset, size
from unlearnx.methods.base import NotApplied
from unlearnx.methods.strength import BEARABLE, Gauge

MOST_ROUNDS = 12  # of training, those that are undone included
MOST_PASSES, PASSES = 3, 2  # rounds over all of many samples, and the epochs of each
STEPS, FEW_STEPS = 16, 4  # of the optimizer in a round, at least; few where nothing teaches what stays
MOST_SAMPLES = 4096  # in an epoch of a round: of many rounds most only tell that the rate is too low
FASTER, SLOWER, FASTEST = 2.0, 0.4, 32.0  # factors of the learning rate, and the greatest one
PASS_RATE = 4.0  # of training on all of many samples, if its beginning does no harm
LONGER, LONGEST = 2, 4  # factors of the epochs of a round
HEALABLE = 0.2  # accuracy on what stays that a method may lose for a while if it trains on what stays as well
HALVINGS = 1  # of the way between two models, more than of a strength

# Trains for so many epochs at so many times the method's learning rates.
Train = Callable[[int, float], None]


class Rounds:
    """Trains round by round until the forget set is forgotten, and no further.

    A round that does harm is undone, and the next one is slower; one that brings little makes the next one faster, or
    longer. Of a round that goes too far a part is taken: the model on the way from the one before it that has just
    forgotten.

    Args:
        model: it is trained in place.
        gauge: says how far the model is.
        train: the method's own training.
        heal: training on what stays, for methods that do that; then harm may be done for a while.
        epochs: length of the first round.
        info: where the rates of the rounds are noted.
        part: where a round trains on all of many samples, the same training on a part of them: it tells at which rate
            to begin. Such a round is long, so that a model that is near to one that never saw the forget set is not
            trained further.
    """

    def __init__(
        self,
        model: nn.Module,
        gauge: Gauge,
        train: Train,
        heal: Train | None,
        epochs: int,
        info: dict[str, Any],
        part: Train | None = None,
    ):
        self.model, self.gauge, self._train, self._heal, self._part = model, gauge, train, heal, part
        self.epochs, self.longest, self.rate = epochs, LONGEST * epochs, 1.0
        self.rates: list[float] = []
        info["rates"] = self.rates

    def run(self) -> None:
        """Train until the forget set is forgotten, or no more rounds are left."""
        best, least = None, self.gauge.known()
        if self._part is not None:
            self.rate = self._bearable_rate(self._part)
        for _ in range(MOST_ROUNDS if self._part is None else MOST_PASSES):
            self._forget()
            if self._heal is not None and self.gauge.forgotten():
                self._recover(self._heal, self.gauge.forgotten)
            if not self.gauge.harmless():
                continue
            reached = max(self.gauge.known(), self.gauge.aim)
            if reached < least:
                best, least = _state(self.model), reached
            if self._is_enough(reached):
                break
        if best is None:
            raise NotApplied(
                "no round of training brought the forget set nearer to what a model would do that never saw it without "
                "harm to what stays"
            )
        _load(self.model, best)
        if self._heal is not None and least > self.gauge.aim:
            self._recover(self._heal, lambda: self.gauge.known() <= least)

    def _bearable_rate(self, train: Train) -> float:
        """The greatest rate at which training on a part of the samples does no harm."""
        before, rate = _state(self.model), PASS_RATE
        for _ in range(MOST_ROUNDS):
            bearable = self._trained(train, rate) and self._bearable()
            _load(self.model, before)
            if bearable:
                break
            rate *= SLOWER
        return rate

    def _is_enough(self, known: float) -> bool:
        return known <= self.gauge.aim or (self._part is not None and self.gauge.near())

    def _forget(self) -> None:
        """A round of the method's own training, undone where it does harm."""
        before, start = _state(self.model), self.gauge.known()
        if not self._trained(self._train, self.rate):
            _load(self.model, before)
            self.rate *= SLOWER
            return
        if self.gauge.forgotten():
            _furthest(self.model, self.gauge.forgotten, _state(self.model), before, self.gauge.halvings)
        if not self._bearable():
            _load(self.model, before)
            self.rate *= SLOWER
        elif start - self.gauge.known() < (start - self.gauge.aim) / 2:
            if self.rate < FASTEST:
                self.rate *= FASTER
            else:
                self.epochs = min(LONGER * self.epochs, self.longest)

    def _bearable(self) -> bool:
        return self.gauge.harmless() if self._heal is None else self.gauge.cost() <= HEALABLE

    def _trained(self, train: Train, rate: float) -> bool:
        try:
            train(self.epochs, rate)
        except FloatingPointError:
            return False
        self.rates.append(rate)
        return True

    def _recover(self, heal: Train, holds: Callable[[], bool]) -> None:
        """Train on what stays where too much of it is lost, as far as what holds of the forget set remains so."""
        for rate in (1.0, 0.5, 0.25):
            if self.gauge.cost() <= BEARABLE:
                return
            before = _state(self.model)
            if not self._trained(heal, rate):
                _load(self.model, before)
                return
            _furthest(self.model, holds, before, _state(self.model), self.gauge.halvings)


def _furthest(
    model: nn.Module, holds: Callable[[], bool], start: dict[str, Tensor], end: dict[str, Tensor], halvings: int
) -> None:
    """Move a model from `start`, where something holds, towards `end` as far as it holds."""
    _load(model, end)
    if holds():
        return
    low, high = 0.0, 1.0
    for _ in range(halvings + HALVINGS):
        middle = (low + high) / 2
        _load(model, _between(start, end, middle))
        if holds():
            low = middle
        else:
            high = middle
    _load(model, _between(start, end, low))


def _between(a: dict[str, Tensor], b: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: torch.lerp(t, b[name], share) if t.is_floating_point() else b[name] for name, t in a.items()}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state)


def of_round(data: Data, seed: int) -> Data:
    """The samples of an epoch of a round: of many, others each time."""
    n = size(data)
    if n <= MOST_SAMPLES:
        return data
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:MOST_SAMPLES]
    return Subset(as_dataset(data), chosen.tolist())


def gently(model: nn.Module, gauge: Gauge, train: Train, epochs: int) -> None:
    """Train where there was nothing to forget, as far as what stays remains as it was."""
    before = _state(model)
    train(epochs, 1.0)
    _furthest(model, gauge.gentle, before, _state(model), gauge.halvings)
