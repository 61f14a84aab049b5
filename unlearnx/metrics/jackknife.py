"""Intervals from what a value is with one sample, or one model, left out.

The bootstrap will not do for divergences of estimated distributions: samples drawn anew, some of them twice, are fewer
different ones, which raises the divergence, so that the value itself lies below the interval of its resamples.
"""

from __future__ import annotations

import math

from torch import Tensor

from unlearnx.metrics.lira import Estimate

NORMAL_95 = 1.96


def left_out_variance(values: Tensor) -> float:
    """The variance of a value, from what it is without each of N independent draws, (N,).

    On average it is not too small, but for terms of higher order.

    Source: Efron and Stein, "The Jackknife Estimate of Variance", Annals of Statistics, 1981.
    """
    return float((values - values.mean()).square().sum()) * (len(values) - 1) / len(values)


def normal_interval(value: float, variance: float, most: float = math.inf) -> Estimate:
    """A value from 0 to `most` with its 95 % interval, cut off there."""
    margin = NORMAL_95 * math.sqrt(variance)
    return Estimate(value, max(0.0, value - margin), min(most, value + margin))
