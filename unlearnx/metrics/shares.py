"""In what share of a forget set a model that never saw it would find the labels as it finds those of other samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from unlearnx.metrics.depths import Depths
from unlearnx.metrics.readings import HIT, PROBABILITY, Reading, of_labels
from unlearnx.metrics.ridge import RidgeClassifier

DEVIATIONS = 3.0  # beyond which a difference is no chance
APART = 0.05  # from one half: how often a sample of one set lies farther out than one of another, of sets that differ
MEMORISED = 0.5  # share of a model's memory in features that tell nothing more
COMPARABLE = 1.5  # times the best classifier's error
NORMAL_95 = 1.96
IMPROBABLE = 0.05  # that all labels are right: the interval need not hold it
BELIEVED_MEMORY = 0.1  # deviation of the share of memory in features of the first half, where nothing measures it


@dataclass(frozen=True)
class Share:
    """The share with its 95 % interval, and what it rests on.

    Attributes:
        estimate, low, high: in [0, 1].
        strange: whether the forget set is unlike what stays: the interval reaches as far as all depths do.
        best: scores (N, classes) of what stays by the best classifier, each sample left out of its fit.
    """

    estimate: float
    low: float
    high: float
    strange: bool
    best: Tensor


@dataclass(frozen=True)
class _Depth:
    """What a classifier on the features of one depth tells.

    Attributes:
        apart: whether the forget set's features lie farther from those of what stays than they do from each other, or
            closer.
        left_out: scores of what stays, each sample left out of the fit, (N, classes).
        found: share of right labels among samples that the model never saw, and its standard error.
        forget: what it says of the forget set's labels, (3, F).
        memory, doubt: share of the labels of the training data that the features hold, and its standard error.
    """

    apart: bool
    left_out: Tensor
    found: tuple[float, float]
    forget: Tensor
    memory: float
    doubt: float

    @property
    def error(self) -> float:
        return 1 - self.found[0]


@dataclass(frozen=True)
class _Estimate:
    """The share as one depth tells it: without what its features have memorised, its error, and with it."""

    share: float
    deviation: float
    at_most: float


def share(fitted: Reading, forget: Reading, held: Reading | None) -> Share | None:
    """The share as the depths tell it together; None where none can.

    The classifier on the features of a depth finds the right label in a known share of samples, and a wrong one where
    its errors fall on it. Its hits on the forget set lie between the two: where, is the share. Of features that hold a
    part of what the model has memorised, they are a mixture with the model's own hits; the part is what the classifier
    finds less in held-out data than in left-out training samples. Depths at which the forget set's features stand
    apart, while early ones do not, have memorised it in particular and are not asked. That all labels are right, as in
    most removals, is taken for as likely beforehand as that any share of them is.

    Args:
        fitted: samples that stay.
        forget: the forget set.
        held: held-out data, or None.
    """
    depths, before = _depths(fitted, forget, held), float(forget.of_labels[HIT].mean())
    early = depths[: max(1, len(depths) // 2)]
    strange = any(d.apart for d in early)
    asked = [d for d in (early if held is None else depths) if d.memory < MEMORISED]
    asked = [d for d in asked if strange or not d.apart]
    told = [(d, _told(d, before, fitted.classes)) for d in asked if _tells(d, fitted.classes)]
    if not told:
        return None
    estimates = [e for _, e in told]
    best = min((d for d, _ in told), key=lambda d: d.error)
    estimate, deviation = _together(estimates)
    low, high = estimate - NORMAL_95 * deviation, estimate + NORMAL_95 * deviation
    all_right = _all_right(estimate, deviation)
    estimate = all_right + (1 - all_right) * estimate
    high = 1.0 if all_right > IMPROBABLE else high
    if strange:  # what features hold of such samples is not what they hold of others
        own = [e.at_most for d, e in told if d.error <= COMPARABLE * best.error + 1 / len(fitted.y)]
        estimate = sum(own) / len(own)
        low = min(low, *(e.share for e in estimates))
        high = max(high, *(float(d.forget[HIT].mean()) for d in depths))
    low, high = (min(1.0, max(0.0, value)) for value in (low, high))
    return Share(estimate, low, high, strange, best.left_out)


def _depths(fitted: Reading, forget: Reading, held: Reading | None) -> list[_Depth]:
    stays = float(fitted.of_labels[HIT].mean())
    depths = []
    readings = [fitted, forget] if held is None else [fitted, forget, held]
    for name in fitted.features:
        if not all(name in reading.features for reading in readings):
            continue  # given up on the way
        classifier = RidgeClassifier(fitted.features[name], fitted.y, fitted.classes)
        mean, error = found = mean_of(of_labels(classifier.left_out, fitted.y)[HIT])
        memory, doubt = 0.0, BELIEVED_MEMORY
        if held is not None:
            found = mean_of(of_labels(classifier(held.features[name]), held.y)[HIT], as_often(held.y, fitted.y))
            room = max(stays - found[0], 1 / len(fitted.y))
            memory = min(1.0, max(0.0, (mean - found[0]) / room))
            doubt = math.hypot(error, found[1]) / room
        if name == Depths.INPUT:  # the model did not make it
            memory = doubt = 0.0
        apart = _apart(classifier.leverage(forget.features[name]), classifier.left_out_leverage)
        said = of_labels(classifier(forget.features[name]), forget.y)
        depths.append(_Depth(apart, classifier.left_out, found, said, memory, doubt))
    return depths


def _wrong(found: float, classes: int) -> float:
    """Share of wrong labels that is found by who finds so many right ones."""
    return (1 - found) / (classes - 1)


def _tells(depth: _Depth, classes: int) -> bool:
    """Whether right labels are found more often than wrong ones, beyond chance."""
    found, error = depth.found
    return found - _wrong(found, classes) > DEVIATIONS * error


def _told(depth: _Depth, before: float, classes: int) -> _Estimate:
    found, error = depth.found
    wrong = _wrong(found, classes)
    hits = float(depth.forget[HIT].mean())
    rest = 1 - depth.memory
    unmixed = (hits - depth.memory * before) / rest
    p = depth.forget[PROBABILITY].clamp(depth.error / classes, 1 - depth.error / classes)
    chance = float((p * (1 - p)).sum().sqrt()) / len(p)
    deviation = math.hypot(chance / rest, depth.doubt * abs(before - hits) / rest**2)
    share, at_most = ((value - wrong) / (found - wrong) for value in (unmixed, hits))
    share, at_most = (min(1.0, max(0.0, value)) for value in (share, at_most))
    return _Estimate(share, math.hypot(deviation, share * error, 0.01) / (found - wrong), at_most)


def _together(estimates: Sequence[_Estimate]) -> tuple[float, float]:
    """Mean by precision and its deviation, larger where they differ by more than they should (Birge's ratio)."""
    weights = [e.deviation**-2 for e in estimates]
    mean = sum(w * e.share for w, e in zip(weights, estimates, strict=True)) / sum(weights)
    excess = sum(w * (e.share - mean) ** 2 for w, e in zip(weights, estimates, strict=True))
    birge = max(1.0, excess / max(1, len(estimates) - 1))
    return mean, math.sqrt(birge / sum(weights))


def _all_right(share: float, deviation: float) -> float:
    """The probability that all labels are right, as those of samples drawn at random are, rather than any share.

    Before the estimate, either is as likely.
    """
    normal = NormalDist(share, deviation)
    all_are, any_share = normal.pdf(1.0), normal.cdf(1.0) - normal.cdf(0.0)
    return all_are / (all_are + any_share)


def _apart(a: Tensor, b: Tensor) -> bool:
    """Whether values (M,) rank above others (N,), or below, by the test of Mann and Whitney and by enough to matter."""
    ordered = b.sort().values
    below, up_to = (torch.searchsorted(ordered, a, right=right).double().mean() for right in (False, True))
    distance = abs(float(below + up_to) / 2 / len(b) - 0.5)
    return distance > max(APART, DEVIATIONS * math.sqrt((1 / len(a) + 1 / len(b)) / 12))


def as_often(y: Tensor, like: Tensor) -> Tensor:
    """Weights (N,) that give the labels `y` the frequencies that they have in `like`; labels it lacks count nothing."""
    classes = 1 + int(max(y.max(), like.max()))
    own, wanted = (torch.bincount(t, minlength=classes).double() for t in (y, like))
    return (wanted / len(like) / (own / len(y)).clamp(min=1 / len(y)))[y]


def mean_of(values: Tensor, weights: Tensor | None = None) -> tuple[float, float]:
    """Weighted mean and its standard error."""
    weights = torch.ones_like(values) if weights is None else weights
    mean = (weights * values).sum() / weights.sum()
    return float(mean), float((weights * (values - mean)).square().sum().sqrt() / weights.sum())
