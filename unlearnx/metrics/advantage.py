"""How well the loss alone tells a forget set from data that the model has not seen."""

from __future__ import annotations

import math

import torch

from unlearnx.metrics.readings import LOSS, Reading
from unlearnx.metrics.shares import as_often
from unlearnx.metrics.unseen import Level

RARE = 0.05  # how often chance alone goes beyond the upper end


def membership_advantage(forget: Reading, held_out: Reading) -> float | None:
    """The most by which the share of the forget set below a threshold on the loss exceeds that of held-out data.

    It is 0 for an attack that guesses and 1 for one that is never wrong. Held-out data count as often as their labels
    occur in the forget set, as the attack would otherwise tell the classes apart; None where they lack one of these.

    Source: Yeom et al., "Privacy Risk in Machine Learning", CSF 2018, definition 4, with the best threshold.
    """
    if not _comparable(forget, held_out):
        return None
    weights = as_often(held_out.y, forget.y)
    losses, order = torch.cat([forget.of_labels[LOSS], held_out.of_labels[LOSS]]).sort()
    gained = torch.full((len(forget.y),), 1 / len(forget.y), dtype=torch.float64)
    difference = torch.cat([gained, -weights / weights.sum()])[order].cumsum(0)
    ends = torch.cat([losses[1:] > losses[:-1], torch.tensor([True])])  # no threshold parts equal losses
    return max(0.0, float(difference[ends].max()))


def advantage_by_chance(forget: Reading, held_out: Reading) -> Level | None:
    """What :func:`membership_advantage` is of a model that saw neither set, where these are alike; None where it is.

    Source: the limit of the one-sided two-sample Kolmogorov-Smirnov statistic.
    """
    if not _comparable(forget, held_out):
        return None
    weights = as_often(held_out.y, forget.y)
    counted = float(weights.sum().square() / weights.square().sum())  # as many samples of one weight vary as much
    high = math.sqrt(-math.log(RARE) / 2 * (1 / len(forget.y) + 1 / counted))
    return Level(0.0, 0.0, min(1.0, high))


def _comparable(forget: Reading, held_out: Reading) -> bool:
    return bool(torch.isin(forget.y, held_out.y).all())
