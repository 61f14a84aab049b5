"""What a model that never saw the forget set would do on it, from the model at hand alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._checks import known_as
from unlearnx._data import Data, picked, size
from unlearnx._known_labels import label_batches
from unlearnx.metrics.levels import Level, UnseenLevel
from unlearnx.metrics.readings import HIT, LOSS, PROBABILITY, Reader, Reading, of_labels, others
from unlearnx.metrics.shares import NORMAL_95, as_often, mean_of, share
from unlearnx.metrics.texts import are_texts, different, expected_loss, text_losses

if TYPE_CHECKING:
    from unlearnx.methods.request import Request

FITTED = 2000  # most samples that a classifier is fitted on
MOST = 0.9  # share of right labels without which no loss is estimated
HARDLY = 1e-3  # probability below which samples are not taken for random ones
READ = 1000  # most samples of the forget set, and of held-out data, that are read


@checked
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
      read on the forget set. How often they find its labels, beside those of what stays and wrong ones, tells in what
      share of it the labels are right. There such a model does as the model at hand does on held-out data, and
      elsewhere as this one does with wrong labels; or better, as it has not learned the wrong ones.

    Features that the model made hold what it has memorised, the last ones most. How much is measured: a classifier on
    them is better on left-out training samples than on held-out data. Where the forget set's features lie farther out
    than those of what stays, at a depth whose input's do not, they have memorised it in particular; where the early
    ones do, it is unlike what stays, such as one user's odd samples, and the interval reaches as far as the depths do.

    The interval holds the error of all that, and the spread over random choices of training. Without held-out data
    nothing tells how good such a model is, nor how much features hold: only the first half of the depths is used, the
    estimate is the mean of what the best classifier does and what the model does on what stays, and the interval
    reaches as far as both. Without a retain set held-out data stand for it, and nothing is estimated where they hold
    samples of a class that the forget set consists of: it may go as a whole, or not.

    Nor is it known what such a model does with labels that some samples that stay have, but none of those that are
    read: the interval holds all that it may do.

    Of texts (a causal language model's inputs that are their own labels) the level is a loss, that of held-out texts of
    the same kind: ``m +- 1.96 s sqrt(1 / K + 1 / N)`` for K different texts to forget, from the mean m and the standard
    deviation s of N held-out ones. With fewer than ten of these nothing tells what a model does that never saw a text.

    Args:
        model: maps x to class scores (N, classes), or to logits of a yes (N,) or (N, 1); or a causal language model.
        request: what is to be forgotten.
        reference: a model that never saw the forget set, whose own level is the answer; or held-out data, of the kind
            that stays, that `model` never saw. Of texts, None stands for the held-out ones of the request.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        seed: of the samples that are read where there are more than 2,000 that stay, or 1,000 of another set.

    Returns:
        The level. It is unknown, with the reason, where outputs or labels are of another kind, and of texts where too
        few are held out.

    Raises:
        ValueError: the model does not take the samples.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> unseen_level(nn.Linear(8, 3), Request.remove_class((x, y), 2)).accuracy.high
        0.0
    """
    reader, forget = Reader(batch_size, autocast, seed), request.forget_set
    if are_texts(forget):
        return _of_texts(model, request, reference, batch_size=batch_size, autocast=autocast, seed=seed)
    if isinstance(reference, nn.Module):
        with known_as(model="reference"):
            answer = reader.read(reference, forget, READ)
        return UNKNOWN_KIND if answer is None else _measured(answer)
    if request.labels_only:
        stays = reader.read(model, request.retain_set, READ)
        return UNKNOWN_KIND if stays is None else _corrected(stays)
    if not request.something_stays:
        return NOTHING_STAYS
    seen = reader.read(model, forget, READ, features=True)
    if seen is None:
        return UNKNOWN_KIND
    what_stays = request.target
    absent = _absent(seen.y, what_stays, batch_size)
    if absent.all():
        return _never_given(seen.classes)
    if not request.has_retain_set:  # held-out data stand for it: half of them are fitted, half are held out
        order = torch.randperm(size(what_stays), generator=torch.Generator().manual_seed(seed))
        what_stays, reference = (picked(what_stays, half) for half in order.tensor_split(2))
    fitted = reader.read(model, what_stays, FITTED, features=True)
    with known_as(data="reference"):
        held = None if reference is None else reader.read(model, reference, READ, features=True)
    if fitted is None or (held is None and reference is not None):
        return UNKNOWN_KIND
    if not request.has_retain_set and _chosen_by_label(request, seen, fitted):
        return MAYBE_A_CLASS
    total = request.samples if request.has_retain_set else len(request.forget) + size(request.target)
    part = len(request.forget) / total
    return _from_features(fitted, seen, held, absent, part)


UNKNOWN_KIND = UnseenLevel(
    None, None, None, "The model does not give one class score for each label of a sample, so nothing is estimated."
)
NOTHING_STAYS = UnseenLevel(
    None, None, None, "There is neither a retain set nor held-out data, so nothing is estimated."
)
NONE_HELD_OUT = UnseenLevel(
    None, None, None, "What a model does on texts that it never saw is told by held-out texts, and none were given."
)
MEASURED = "A model that never saw the forget set was measured."
MAYBE_A_CLASS = UnseenLevel(
    None,
    None,
    None,
    "The samples to forget were chosen by their labels, which held-out samples have as well, and without a retain set "
    "nothing tells whether samples with these labels stay. Where none does, leave them out of the held-out data.",
)
TOO_FEW_STAY = UnseenLevel(
    None, None, None, "Of the labels of the forget set too few samples stay to tell what a model makes of them."
)
UNTOLD = UnseenLevel(
    None, None, None, "At no depth do the model's features tell labels of what stays that it has not memorised."
)


def _of_texts(model: nn.Module, request: Request, reference: nn.Module | Data | None, **settings: Any) -> UnseenLevel:
    """The level of texts: the loss of the model that never saw them, or of texts that the model never saw."""
    if isinstance(reference, nn.Module):
        with known_as(model="reference"):
            losses = text_losses(reference, request.forget_set, READ, **settings)
        mean, error = mean_of(losses)
        return UnseenLevel(None, None, _interval(LOSS, [mean], error), MEASURED)
    held_out = request.held_out if reference is None else reference
    if held_out is None:
        return NONE_HELD_OUT
    with known_as(data="reference" if reference is not None else "held_out"):
        losses = text_losses(model, held_out, READ, **settings)
    return expected_loss(losses, different(request.forget_set))


def _absent(labels: Tensor, what_stays: Data, batch_size: int | None) -> Tensor:
    """Which of the labels (N,) no sample has that stays, (N,) bool: all are looked at, as a few may have them."""
    missing = labels.unique()
    for y in label_batches(what_stays, batch_size):
        missing = missing[~torch.isin(missing, y.cpu().double())]
        if not len(missing):
            break
    return torch.isin(labels, missing)


def _chosen_by_label(request: Request, forget: Reading, like: Reading) -> bool:
    """Whether so many samples drawn at random would hardly have had these labels alone, as those of a class do."""
    frequency = float(torch.isin(like.y, forget.y).double().mean())
    return frequency ** len(request.forget) < HARDLY


def _measured(answer: Reading) -> UnseenLevel:
    p = answer.of_labels[PROBABILITY]
    chance = float((p * (1 - p)).sum().sqrt()) / len(p)  # of other models that never saw it

    def level(row: int) -> Level:
        mean, error = mean_of(answer.of_labels[row])
        return _interval(row, [mean], error if row == LOSS else chance)

    return UnseenLevel(level(HIT), level(PROBABILITY), level(LOSS), MEASURED)


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


def _from_features(
    fitted: Reading, forget: Reading, held: Reading | None, absent: Tensor, of_training: float
) -> UnseenLevel:
    """The level; the forget set is such a part of the training data, and of some of its labels no sample stays."""
    read = torch.isin(forget.y, fitted.y)
    if not read.any():
        return TOO_FEW_STAY
    found = share(fitted, forget.where(read), held)
    if found is None:
        return UNTOLD
    n, parts = len(forget.y), [float(some.double().mean()) for some in (~absent, read)]
    if held is not None:
        weights = as_often(held.y, fitted.y)
        own = _End(held.of_labels, held.of_others, weights)
        learned_wrong = (1 - found.estimate) * of_training  # costs a model at most as much accuracy
        ends = [own, replace(own, mended=learned_wrong)]
    else:
        others_of = others(fitted.y, fitted.classes)
        least = _End(of_labels(found.best, fitted.y), of_labels(found.best, others_of), torch.ones(len(fitted.y)))
        ends = [least, _End(fitted.of_labels, fitted.of_others, torch.ones(len(fitted.y)))]

    def level(row: int) -> Level:
        estimate = sum(end.at(row, found.estimate) for end in ends) / len(ends)
        reached = [end.at(row, share) for end in ends for share in (found.low, found.high)]
        deviation = max(end.deviation(row, found.estimate, n) for end in ends)
        return _interval(row, [part * value for part in parts for value in (estimate, *reached)], deviation)

    accuracy, confidence = level(HIT), level(PROBABILITY)
    right = held is not None and bool(read.all()) and found.low >= MOST
    loss = level(LOSS) if right else None  # of a wrong label it is as sure as a model is of its errors: any number
    return UnseenLevel(accuracy, confidence, loss, _basis(held is not None, found.strange))


@dataclass(frozen=True)
class _End:
    """What a model does that is as good as one may be: of the right labels of samples, and of wrong ones, (3, N).

    Its accuracy is better by `mended` than that.
    """

    right: Tensor
    wrong: Tensor
    weights: Tensor
    mended: float = 0.0

    def at(self, row: int, share: float) -> float:
        """Mean over samples of which so many have labels that are right."""
        (right, _), (wrong, _) = (mean_of(of[row], self.weights) for of in (self.right, self.wrong))
        if row != LOSS and right < 1:
            rest = 1 - min(1.0, self.mended / (1 - right))  # of its errors
            right, wrong = 1 - rest * (1 - right), rest * wrong
        return share * right + (1 - share) * wrong

    def deviation(self, row: int, share: float, n: int) -> float:
        """Standard deviation of that mean over `n` samples, with the error of what it is taken from."""
        (_, right), (_, wrong) = (mean_of(of[row], self.weights) for of in (self.right, self.wrong))
        m = len(self.weights)
        spread = m * (share * right**2 + (1 - share) * wrong**2) + 1 / m  # as if one more of them were otherwise
        return math.sqrt(spread / n + (share * right) ** 2 + ((1 - share) * wrong) ** 2)


def _basis(held: bool, strange: bool) -> str:
    basis = "Classifiers on features of several depths of the model, fitted on what stays"
    basis += ", and the model itself on held-out data." if held else "; no held-out data was given."
    return f"{basis} The forget set is unlike what stays, where the depths differ." if strange else basis


def _interval(row: int, estimates: Sequence[float], deviation: float) -> Level:
    """Of the first estimate, reaching as far as all of them, and further by chance."""
    estimate, chance = estimates[0], NORMAL_95 * deviation
    low = estimate - math.hypot(estimate - min(estimates), chance)
    high = estimate + math.hypot(max(estimates) - estimate, chance)
    top = math.inf if row == LOSS else 1.0
    return Level(*(min(top, max(0.0, value)) for value in (estimate, low, high)))
