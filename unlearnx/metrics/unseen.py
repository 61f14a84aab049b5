"""What a model that never saw the forget set would do on it, from the model at hand alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unlearnx._data import Data
from unlearnx._known_labels import drawn_labels
from unlearnx.metrics.readings import HIT, LOSS, PROBABILITY, Reader, Reading, of_labels
from unlearnx.metrics.ridge import RidgeClassifier

if TYPE_CHECKING:
    from unlearnx.methods.request import Request

FITTED = 3000  # most samples that a classifier is fitted on
READ = 2000  # most samples of the forget set, and of held-out data, that are read
COMPARABLE = 1.5  # classifiers with up to so many times the best one's error tell how far estimates differ
SYMPTOM = 0.01  # accuracy on left-out samples above that on held-out ones, beyond chance: the features memorised
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Level:
    """An estimate with its 95 % interval.

    Example:
        >>> level = Level(0.9, 0.85, 0.93)
        >>> level.furthest(0.87)
        0.06
    """

    estimate: float
    low: float
    high: float

    def furthest(self, value: float) -> float:
        """Distance of `value` to the farther end of the interval."""
        return round(max(abs(value - self.low), abs(value - self.high)), 12)


@dataclass(frozen=True)
class UnseenLevel:
    """What a model that never saw the forget set would do on it, with the labels that are to be forgotten.

    Attributes:
        accuracy: share of the forget set that such a model gives those labels, in [0, 1]; None where unknown.
        confidence: mean probability that it gives to those labels, in [0, 1]; None where unknown.
        loss: mean cross-entropy in nats; None where unknown.
        basis: what these rest on, or why they are unknown: a sentence.

    Example:
        >>> UnseenLevel(None, None, None, "The outputs are no class scores.").known
        False
    """

    accuracy: Level | None
    confidence: Level | None
    loss: Level | None
    basis: str

    @property
    def known(self) -> bool:
        """Whether there is an estimate."""
        return self.accuracy is not None


def unseen_level(
    model: nn.Module,
    request: Request,
    reference: nn.Module | Data | None = None,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
) -> UnseenLevel:
    """Estimate what a model that never saw the forget set would do on it, without training one.

    - Labels that no sample that stays has, as of a whole class, are never given.
    - Of corrected labels, such a model has learned the new ones, as the model at hand has learned what stays.
    - For other samples, linear classifiers are fitted on features of what stays, at several depths of the model, and
      read on the forget set. The last features have memorised the training data, the forget set included. A depth
      whose classifier is better on left-out training samples than on held-out data is therefore left out, and of the
      others the best on held-out data decides. What it lacks of the whole model's accuracy on held-out data is added.

    The interval holds the spread over random choices of training, the error of the correction, and how far the
    estimates of depths as good differ. Without held-out data nothing tells how much the features have memorised, nor
    what a classifier lacks: only the first half of the depths is used, and the interval reaches from the classifier's
    accuracy to that of a model without errors on what stays. On data that early features do not separate it is wide.

    Args:
        model: maps x to class scores (N, classes), or to logits of a yes (N,) or (N, 1).
        request: what is to be forgotten.
        reference: a model that never saw the forget set, whose own level is the answer; or held-out data, of the kind
            that stays, that `model` never saw.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        seed: of the samples that are read where there are more than 3,000 that stay, or 2,000 of another set.

    Returns:
        The level. It is unknown, with the reason, where outputs or labels are of another kind.

    Raises:
        ValueError: the model does not take the samples.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> unseen_level(nn.Linear(8, 3), Request.remove_class((x, y), 2)).accuracy.high
        0.0
    """
    reader, forget = Reader(batch_size, autocast, seed), request.forget_set
    if isinstance(reference, nn.Module):
        answer = reader.read(reference, forget, READ)
        return UNKNOWN_KIND if answer is None else _measured(answer)
    seen = reader.read(model, forget, READ, features=True)
    if seen is None:
        return UNKNOWN_KIND
    if request.labels_only:
        stays = reader.read(model, request.retain_set, READ)
        return UNKNOWN_KIND if stays is None else _corrected(stays)
    absent = ~torch.isin(seen.y, _labels(request.target, batch_size))
    if absent.all():
        return _never_given(seen.classes)
    fitted = reader.read(model, request.target, FITTED, features=True)
    held = None if reference is None else reader.read(model, reference, READ, features=True)
    if fitted is None or (held is None and reference is not None):
        return UNKNOWN_KIND
    return _from_features(fitted, seen, held, absent)


UNKNOWN_KIND = UnseenLevel(
    None, None, None, "The model does not give one class score for each label of a sample, so nothing is estimated."
)
MEMORISED = UnseenLevel(
    None, None, None, "At every depth the model's features have memorised its training data, so that none can tell."
)


def _labels(data: Data, batch_size: int | None) -> Tensor:
    """The labels that occur, each once; among some samples where reading all would take long."""
    found = [y.reshape(-1).unique() for y in drawn_labels(data, batch_size)]
    return torch.cat(found).unique().long().cpu()


def _measured(answer: Reading) -> UnseenLevel:
    def level(row: int) -> Level:
        return _interval(row, [float(answer.of_labels[row].mean())], _spread(answer.of_labels, row))

    return UnseenLevel(
        level(HIT), level(PROBABILITY), level(LOSS), "A model that never saw the forget set was measured."
    )


def _never_given(classes: int) -> UnseenLevel:
    return UnseenLevel(
        Level(0.0, 0.0, 0.0),
        Level(0.0, 0.0, 1 / classes),
        None,
        "No sample that stays has these labels, so a model trained on what stays never gives them.",
    )


def _corrected(stays: Reading) -> UnseenLevel:
    def rest(row: int) -> Level:
        missed = 1 - float(stays.of_labels[row].mean())
        return Level(missed / (stays.classes - 1), 0.0, missed)

    return UnseenLevel(
        rest(HIT),
        rest(PROBABILITY),
        None,
        "A model trained on the corrected labels gives those, as often as this one gives the labels of what stays.",
    )


@dataclass(frozen=True)
class _Depth:
    """What the classifier on one depth's features says of labels, (3, N) each; `held` where there is held-out data."""

    left_out: Tensor
    forget: Tensor
    held: Tensor | None

    @property
    def error(self) -> float:
        """Share of wrong predictions on held-out data, or on samples left out of the fit."""
        return 1 - float((self.left_out if self.held is None else self.held)[HIT].mean())

    @property
    def memorised(self) -> bool:
        """Whether the features tell more of what the model was trained on than of what it was not."""
        if self.held is None:
            return False
        seen, unseen = self.left_out[HIT], self.held[HIT]
        return float(seen.mean() - unseen.mean()) > SYMPTOM + math.hypot(_error(seen), _error(unseen))


def _depths(fitted: Reading, forget: Reading, held: Reading | None) -> list[_Depth]:
    """In the model's order. Without held-out data the later half is left out: nothing tells what it has memorised."""
    depths = []
    names = list(fitted.features)
    for name in names if held is not None else names[: max(1, len(names) // 2)]:
        classifier = RidgeClassifier(fitted.features[name], fitted.y, fitted.classes)
        depths.append(
            _Depth(
                of_labels(classifier.left_out, fitted.y),
                of_labels(classifier(forget.features[name]), forget.y),
                None if held is None else of_labels(classifier(held.features[name]), held.y),
            )
        )
    return depths


def _from_features(fitted: Reading, forget: Reading, held: Reading | None, absent: Tensor) -> UnseenLevel:
    depths = sorted((d for d in _depths(fitted, forget, held) if not d.memorised), key=lambda d: d.error)
    if not depths:
        return MEMORISED
    best = depths[0]
    comparable = [d for d in depths if d.error <= COMPARABLE * best.error + 1 / len(fitted.y)]
    present = (~absent).double()

    def level(row: int) -> Level:
        own = [float((present * d.forget[row]).mean()) for d in comparable]
        spread = _spread(present * best.forget, row, best.error, fitted.classes)
        if held is None:
            lacks = float(present.mean() * (1 - best.left_out[row].mean()))
            return _interval(row, [own[0] + lacks / 2, *own, own[0] + lacks], spread)
        gains = [present.mean() * (held.of_labels[row] - d.held[row]) for d in comparable if d.held is not None]
        corrected = [mine + float(gain.mean()) for mine, gain in zip(own, gains, strict=True)]
        return _interval(row, [*corrected, max(own[0], corrected[0])], math.hypot(spread, _error(gains[0])))

    if held is None:
        basis = "Classifiers on the first half of the model's depths, fitted on what stays; no held-out data was given."
        return UnseenLevel(level(HIT), level(PROBABILITY), None, basis)
    basis = "Classifiers on features that have not memorised, fitted on what stays, corrected on held-out data."
    return UnseenLevel(level(HIT), level(PROBABILITY), None if absent.any() else level(LOSS), basis)


def _interval(row: int, estimates: Sequence[float], deviation: float) -> Level:
    """Of the first estimate, reaching as far as all of them, and further by chance."""
    low, high = min(estimates) - NORMAL_95 * deviation, max(estimates) + NORMAL_95 * deviation
    top = math.inf if row == LOSS else 1.0
    return Level(*(min(top, max(0.0, value)) for value in (estimates[0], low, high)))


def _spread(of_labels: Tensor, row: int, error: float = 0.0, classes: int = 2) -> float:
    """Standard deviation of a mean over the samples among models trained alike, whose predictions are random.

    No prediction is surer than a model is that errs in the share `error` of all, towards any of the classes.
    """
    if row == LOSS:
        return _error(of_labels[row])
    p = of_labels[PROBABILITY].clamp(error / classes, 1 - error)
    return float((p * (1 - p)).sum().sqrt() / len(p))


def _error(values: Tensor) -> float:
    """Standard error of a mean."""
    return float(values.std(correction=0)) / math.sqrt(len(values))
