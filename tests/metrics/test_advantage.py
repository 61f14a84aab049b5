"""The advantage of an attack on the loss, against thresholds tried one by one."""

import math

import pytest
import torch

from unlearnx.metrics.advantage import advantage_by_chance, membership_advantage
from unlearnx.metrics.readings import LOSS, Reading


def reading(losses, y):
    of_labels = torch.zeros(3, len(losses), dtype=torch.float64)
    of_labels[LOSS] = torch.as_tensor(losses)
    return Reading(torch.as_tensor(y), of_labels, of_labels, 3, {})


def test_equals_the_best_of_all_thresholds():
    generator = torch.Generator().manual_seed(0)
    forget = torch.randint(8, (40,), generator=generator).double()  # with equal losses
    held = torch.randint(2, 10, (60,), generator=generator).double()
    y, other = torch.arange(40) % 2, torch.arange(60) % 3
    best = 0.0
    for threshold in torch.arange(10).tolist():
        known = float((forget <= threshold).double().mean())
        shares = [float((held[other == c] <= threshold).double().mean()) for c in (0, 1)]  # labels as in the forget set
        best = max(best, known - sum(shares) / 2)
    assert membership_advantage(reading(forget, y), reading(held, other)) == pytest.approx(best, abs=1e-12)


def test_ends():
    y = torch.zeros(5, dtype=torch.long)
    low, high = torch.arange(5.0), torch.arange(5.0) + 10
    assert membership_advantage(reading(low, y), reading(high, y)) == 1
    assert membership_advantage(reading(high, y), reading(low, y)) == 0
    assert membership_advantage(reading(low, y), reading(low, y)) == 0


def test_data_without_a_class_tell_nothing():
    forget, held = reading([0.1, 0.2], [2, 2]), reading([0.1, 0.2], [0, 1])
    assert membership_advantage(forget, held) is None
    assert advantage_by_chance(forget, held) is None


def test_chance_alone_seldom_goes_beyond_the_upper_end():
    generator = torch.Generator().manual_seed(0)
    beyond = 0
    for _ in range(400):
        losses = torch.rand(150, generator=generator)
        forget = reading(losses[:50], torch.arange(50) % 2)
        held = reading(losses[50:], (torch.arange(100) % 5 > 0).long())  # other frequencies
        beyond += membership_advantage(forget, held) > advantage_by_chance(forget, held).high
    assert beyond / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
