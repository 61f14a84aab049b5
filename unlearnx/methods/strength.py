"""The least strength at which a method makes a model forget, found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unlearnx._data import Data, picked, size
from unlearnx._losses import Loss
from unlearnx.metrics import mean_loss
from unlearnx.metrics.levels import Level
from unlearnx.metrics.readings import HIT, Reader, Reading
from unlearnx.metrics.texts import are_texts, text_losses

AUTO = "auto"
FORGET_TRIED = 512  # most samples of the forget set that a trial looks at
STAYS_TRIED = 1024  # most samples of what stays
TEXTS_TRIED = 128  # most texts of either, and held-out ones
# In accuracy, and of texts in nats a token, of which a hundredth is a hundredth of the perplexity:
BELOW = 0.02  # below the level, where it is avoided rather than forgotten
BEARABLE = 0.005  # that what stays may lose without anything being done about it
CHEAP = 0.01  # that what stays may lose where nothing else is to be tried
FACTOR = 4.0  # between trials until one forgets and one does not
MOST_TRIALS = 8  # in one direction
HALVINGS, TEXT_HALVINGS = 4, 6  # of the logarithm of that factor: losses of texts have no upper end to be caught at
FINER, FINER_TRIALS = 1.3, 8  # the factor between trials, and how many, below a strength that costs too much

Known = Callable[[nn.Module], float]  # how well a model knows some samples


def given(name: str, value: float | str) -> float | None:
    """The strength that the user gives; None for "auto".

    Raises:
        ValueError: it is neither a number nor "auto".
    """
    if value == AUTO:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}, expected a number or 'auto'")
    return float(value)


@dataclass(frozen=True)
class Standing:
    """How far a model is on its way.

    Attributes:
        known: how well the forget set is known; `aim` where that is less.
        cost: what is lost on what stays.
        aim: how well it is known where it counts as forgotten.
    """

    known: float
    cost: float
    aim: float

    @property
    def is_good(self) -> bool:
        """Whether the forget set is forgotten at little cost."""
        return self.known <= self.aim and self.cost <= CHEAP

    @property
    def rank(self) -> tuple[float, float]:
        """The least is best: forgotten first, then cheap."""
        return self.known, self.cost


class Gauge:
    """Says of a model as it is now whether it has forgotten, and whether what stays has come to harm.

    Both are read on samples drawn once: a trial is a pass over some hundred samples. How well the forget set is known,
    and what is lost on what stays, are accuracies, or nats a token of texts.

    Args:
        model: the model that a method changes in place.
        loss_fn: the loss on what stays.
        known: how well a model knows the forget set.
        kept: the corrected data, or the retain set.
        level: how well a model knows the forget set that never saw it.
        allowed: how much the mean loss on what stays may increase.
        halvings: between a strength that is enough and one that is not.
        batch_size: samples in one pass.
        autocast: dtype of autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        known: Known,
        kept: Tried,
        level: Level,
        allowed: float,
        *,
        halvings: int,
        batch_size: int,
        autocast: torch.dtype | None,
    ):
        self._model, self._loss_fn, self._known, self._kept, self._level = model, loss_fn, known, kept, level
        self._settings: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast}
        self.halvings = halvings
        self.aim, self.floor = level.estimate + level.leeway, level.estimate - BELOW
        self.at_start = self.known()
        self._kept_at_start = self._kept.known(model)
        self.limit = self.loss() + allowed

    @property
    def nothing_to_forget(self) -> bool:
        """Whether the forget set was at that level from the beginning: what follows would be noise, and could harm."""
        return self.at_start <= self.aim or self._level.agrees(self.at_start)

    def known(self) -> float:
        """How well the forget set is known."""
        return self._known(self._model)

    def cost(self) -> float:
        """How much of the accuracy on what stays is lost, in [0, 1]; of texts how much its mean loss rose, in nats."""
        return max(0.0, self._kept_at_start - self._kept.known(self._model))

    def standing(self) -> Standing:
        """How far the model is now."""
        return Standing(max(self.known(), self.aim), self.cost(), self.aim)

    def loss(self) -> float:
        """Mean loss on what stays."""
        return mean_loss(self._model, self._loss_fn, self._kept.samples, **self._settings)

    def forgotten(self) -> bool:
        """Whether the forget set is at the level of a model that never saw it."""
        return self.known() <= self.aim

    def near(self) -> bool:
        """Whether the forget set is so near to that level that much more training would not be worth it."""
        return self._level.is_near(self.known())

    def gentle(self) -> bool:
        """Whether the forget set is not avoided, and what stays is as it was."""
        return self.known() >= min(self.floor, self.at_start - BELOW) and self.cost() <= BEARABLE and self.harmless()

    def harmless(self) -> bool:
        """Whether what stays has come to no more harm than is allowed."""
        loss = self.loss()
        return math.isfinite(loss) and loss <= self.limit


class Tried:
    """Samples drawn once, to see in every trial how well a model knows them.

    Args:
        data: what they are drawn from.
        most: how many are drawn at most; fewer of texts.
        batch_size, autocast, seed: of :class:`unlearnx.metrics.readings.Reader`.
    """

    def __init__(self, data: Data, most: int, *, batch_size: int, autocast: torch.dtype | None, seed: int):
        self._texts = are_texts(data)
        self._most = TEXTS_TRIED if self._texts else most
        self.samples = some(data, self._most, seed, batch_size)
        self._settings: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "seed": seed}

    def known(self, model: nn.Module) -> float:
        """Accuracy, with the samples' labels, in [0, 1], 0 of outputs that are no class scores.

        Of texts it is minus their mean loss, in nats a token.
        """
        if self._texts:
            return -float(text_losses(model, self.samples, self._most, **self._settings).mean())
        return hits(Reader(**self._settings).read(model, self.samples, self._most))


def likelier(forget: Tried, unseen: Tried | float) -> Known:
    """How much less the mean loss of texts to forget is than that of texts never seen, in nats a token.

    To a model that never saw a text it is as likely as others of its kind, so that held-out ones are read anew in every
    trial. What was known by heart makes texts like it, such as other numbers in the same sentence, less likely than
    they are to such a model; what takes it away makes them likelier, or still less likely.

    Args:
        forget: the texts to forget.
        unseen: held-out texts; or the loss of those to forget by a model that never saw them.
    """
    return lambda model: (unseen if isinstance(unseen, float) else -unseen.known(model)) + forget.known(model)


def hits(reading: Reading | None) -> float:
    """The share of labels that are predicted."""
    return 0.0 if reading is None else float(reading.of_labels[HIT].mean())


def some(data: Data, most: int, seed: int, batch_size: int) -> Data:
    """At most so many samples, drawn at random; see :func:`picked`."""
    chosen = torch.randperm(size(data), generator=torch.Generator().manual_seed(seed))[:most]
    return picked(data, chosen.sort().values, batch_size)


@dataclass(frozen=True)
class Found:
    """A strength; 0 where none is harmless. `forgets` says whether it is enough, `trials` how many were tried."""

    strength: float
    forgets: bool
    trials: int


def least_strength(
    forgets: Callable[[float], bool],
    harmless: Callable[[float], bool],
    guess: float,
    *,
    most: float = math.inf,
    halvings: int = HALVINGS,
) -> Found:
    """The least strength that forgets, or, where that does harm, the greatest that does none.

    The strength is found by factors of four from `guess`, and then by bisection of its logarithm.

    Args:
        forgets: whether a strength is enough.
        harmless: whether a strength does no more harm than is allowed.
        guess: where to start.
        most: no strength is greater.
        halvings: of the bracket that is found first.
    """
    tried: dict[float, bool] = {}

    def enough(strength: float) -> bool:
        if strength not in tried:
            tried[strength] = forgets(strength)
        return tried[strength]

    low, high = _bracket(enough, harmless, min(guess, most), most)
    if high is not None:
        high = _bisected(enough, low, high, halvings)
        if harmless(high):
            return Found(high, True, len(tried))
    if high is None and harmless(low):
        return Found(low, False, len(tried))
    return Found(greatest_strength(harmless, low if high is None else high), False, len(tried))


def cheaper_strength(stands: Callable[[float], Standing], enough: float) -> float:
    """Where a strength costs what stays too much, a lesser one that forgets as well at less cost; else itself.

    A model may forget at a strength, know the samples again at a greater one, and forget them for good at one that does
    more harm: the search for the least strength passes by the first of these.

    Args:
        stands: how far the model is at a strength.
        enough: the strength that was found.
    """
    found = {enough: stands(enough)}
    if not found[enough].is_good:
        found |= {strength: stands(strength) for strength in (enough / FINER**k for k in range(1, FINER_TRIALS + 1))}
    return min(found, key=lambda strength: found[strength].rank)


def greatest_strength(harmless: Callable[[float], bool], too_much: float) -> float:
    """The greatest strength below `too_much` that is harmless; 0 where none is found."""
    for _ in range(MOST_TRIALS):
        too_much /= FACTOR
        if harmless(too_much):
            return _bisected(lambda strength: not harmless(strength), too_much, too_much * FACTOR, lower=True)
    return 0.0


def _bracket(
    enough: Callable[[float], bool], harmless: Callable[[float], bool], guess: float, most: float
) -> tuple[float, float | None]:
    """A strength that is not enough, and one that is; None where none was found before it did harm."""
    if enough(guess):
        high = guess
        for _ in range(MOST_TRIALS):
            if not enough(high / FACTOR):
                return high / FACTOR, high
            high /= FACTOR
        return high / FACTOR, high
    low = guess
    for _ in range(MOST_TRIALS):
        if low >= most or not harmless(low):
            break
        high = min(low * FACTOR, most)
        if enough(high):
            return low, high
        low = high
    return low, None


def _bisected(
    is_high: Callable[[float], bool], low: float, high: float, halvings: int = HALVINGS, *, lower: bool = False
) -> float:
    """The upper end of a narrower bracket, or its lower end."""
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        if is_high(middle):
            high = middle
        else:
            low = middle
    return low if lower else high
