"""How well the loss alone tells a forget set from data that the model has not seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unlearnx.metrics.levels import Level
from unlearnx.metrics.readings import LOSS, Reading
from unlearnx.metrics.shares import as_often

RARE = 0.05  # how often chance alone goes beyond the upper end


def membership_advantage(forget: Reading, held_out: Reading) -> float | None:
    """What :func:`threshold_advantage` is of the losses of labels.

    Held-out data count as often as their labels occur in the forget set, as the attack would otherwise tell the classes
    apart; None where they lack one of these.
    """
    if not _comparable(forget, held_out):
        return None
    losses = forget.of_labels[LOSS], held_out.of_labels[LOSS]
    return threshold_advantage(*losses, as_often(held_out.y, forget.y))


def threshold_advantage(forget: Tensor, held_out: Tensor, weights: Tensor | None = None) -> float:
    """The most by which the share of the forget set below a threshold on the loss exceeds that of held-out data.

    It is 0 for an attack that guesses and 1 for one that is never wrong.

    Args:
        forget: losses (N,).
        held_out: losses (M,).
        weights: of the latter, (M,).

    Source: Yeom et al., "Privacy Risk in Machine Learning", CSF 2018, definition 4, with the best threshold.
    """
    weights = torch.ones_like(held_out) if weights is None else weights
    losses, order = torch.cat([forget, held_out]).sort()
    gained = torch.full((len(forget),), 1 / len(forget), dtype=torch.float64)
    difference = torch.cat([gained, -weights / weights.sum()])[order].cumsum(0)
    ends = torch.cat([losses[1:] > losses[:-1], torch.tensor([True])])  # no threshold parts equal losses
    return max(0.0, float(difference[ends].max()))


def advantage_by_chance(forget: Reading, held_out: Reading) -> Level | None:
    """What :func:`membership_advantage` is of a model that saw neither set, where these are alike; None where it is."""
    if not _comparable(forget, held_out):
        return None
    weights = as_often(held_out.y, forget.y)
    counted = float(weights.sum().square() / weights.square().sum())  # as many samples of one weight vary as much
    return threshold_by_chance(len(forget.y), counted)


def threshold_by_chance(forget: int, held_out: float) -> Level:
    """What :func:`threshold_advantage` is of so many samples of either set, where these are alike.

    Source: the limit of the one-sided two-sample Kolmogorov-Smirnov statistic.
    """
    return Level(0.0, 0.0, min(1.0, math.sqrt(-math.log(RARE) / 2 * (1 / forget + 1 / held_out))))


def _comparable(forget: Reading, held_out: Reading) -> bool:
    return bool(torch.isin(forget.y, held_out.y).all())
