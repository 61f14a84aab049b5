"""In what share of a forget set labels are right: on features and models whose truth is known."""

import pytest
import torch
from torch.nn import functional as F

from unlearnx.metrics.readings import HIT, PROBABILITY, Reading, of_labels, others
from unlearnx.metrics.shares import as_often, mean_of, share

CLASSES = 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(n, seed, noise=1.0, shift=0.0):
    """Features of a depth, which tell the labels with errors, and the labels."""
    y = torch.randint(CLASSES, (n,), generator=generator(seed))
    return F.one_hot(y, 6).double() + noise * torch.randn(n, 6, generator=generator(seed + 1)) + shift, y


def reading(y, hits=1.0, **features):
    """Of a model that gives such a share of the samples their labels."""
    given = torch.where(torch.arange(len(y)) < hits * len(y), y, (y + 1) % CLASSES)
    values = 9.0 * F.one_hot(given, CLASSES)
    return Reading(y, of_labels(values, y), of_labels(values, others(y, CLASSES)), CLASSES, features)


def case(wrong=0.0, held=True, n=600, noise=0.4, **shift):
    """What stays, a forget set with so many labels that are wrong, and held-out data, at one depth: the input."""
    (x, y), (u, v), (a, b) = samples(1500, 0, noise), samples(n, 10, noise, **shift), samples(1500, 20, noise)
    given = torch.where(torch.arange(n) < wrong * n, others(v, CLASSES), v)
    return reading(y, input=x), reading(given, input=u), reading(b, 0.9, input=a) if held else None


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.5, 1.0])
def test_share_of_labels_that_are_right(wrong, held):
    found = share(*case(wrong, held))
    assert found.estimate == pytest.approx(1 - wrong, abs=0.05)
    assert found.low - 1e-9 <= 1 - wrong <= found.high + 1e-9
    assert found.high - found.low < 0.2
    assert not found.strange


@pytest.mark.parametrize("noise", [0.8, 1.5])
def test_weak_features_tell_it_too_within_wider_intervals(noise):
    found, sure = share(*case(0.5, noise=noise)), share(*case(0.5))
    assert found.low <= 0.5 <= found.high
    assert found.high - found.low > sure.high - sure.low


def test_features_that_tell_nothing():
    fitted, forget, held = case(0.5)
    for part in (fitted, forget, held):
        part.features["input"] = torch.randn(part.features["input"].shape, generator=generator(3))
    assert share(fitted, forget, held) is None


def memorising(part, y):
    """With a depth that holds the labels themselves for a third of the samples, which tells them by a column each."""
    known = torch.arange(len(y)) % 3 == 0
    part.features["memory"] = part.features["input"] + 9 * known[:, None] * F.one_hot(y, 6)


def test_what_features_have_memorised_is_taken_off():
    """Right labels are memorised as wrong ones are, in the forget set as in what stays, and not in held-out data."""
    fitted, forget, held = case(1.0, noise=0.6)
    memorising(fitted, fitted.y)
    memorising(forget, forget.y)
    held.features["memory"] = held.features["input"]
    deep = share(
        *(
            Reading(p.y, p.of_labels, p.of_others, CLASSES, {"memory": p.features["memory"]})
            for p in (fitted, forget, held)
        )
    )
    assert deep is None or deep.low <= 0.05
    assert share(fitted, forget, held).estimate < 0.05


def test_a_forget_set_unlike_what_stays_is_told():
    fitted, forget, held = case(shift=5.0)
    found = share(fitted, forget, held)
    assert found.strange
    for part in (fitted, held):
        part.features["later"] = part.features["input"].clone()
    forget.features["later"] = forget.features["input"] - 5.0  # as the later features see it, it is not
    wide = share(fitted, forget, held)
    assert wide.low < 0.6 < 0.95 < wide.high


def test_labels_of_others_are_all_the_wrong_ones():
    y = torch.tensor([0, 0, 0, 3, 3, 3])
    assert others(y, 4).tolist() == [1, 2, 3, 0, 1, 2]
    assert others(torch.tensor([0, 1, 1]), 2).tolist() == [1, 0, 0]


def test_weighted_means():
    y, like = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])
    weights = as_often(y, like)
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 3])
    mean, error = mean_of(torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64), weights.double())
    assert mean == pytest.approx(11 / 12)
    assert error > mean_of(torch.tensor([1.0, 1.0, 0.0, 1.0]))[1] / 4
    assert as_often(torch.tensor([0, 2]), torch.tensor([0, 0])).tolist() == [2, 0]


def test_rows_of_labels_that_are_wrong():
    y = torch.tensor([0, 1, 2])
    part = reading(y)
    assert part.of_others[HIT].tolist() == [0, 0, 0]
    assert part.of_others[PROBABILITY].sum() < 0.01
    assert part.where(y > 0).y.tolist() == [1, 2]
