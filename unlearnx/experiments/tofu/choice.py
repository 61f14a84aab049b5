"""How strengths are chosen: on other authors than those to forget, by one rule, with as many trials of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RULE = (
    "the strength of the lowest sum of the Kolmogorov-Smirnov distance of the truth ratios of the validation authors "
    "from those of a model trained without them, and of the share of that model's utility that is lost, where utility "
    "is that of all but what is written and the truth ratio of what stays"
)


def distance(found: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """How far a model is from a reference, both as :meth:`TofuMeasures.quick` reads them.

    Returns:
        ``ks``, the largest difference of the distributions of truth ratios, in [0, 1]; ``lost``, the share of the
        reference's utility that is missing, at least 0; and their sum, the ``score``: the lower the better.
    """
    from scipy.stats import ks_2samp

    ks = float(ks_2samp(found["ratios"], reference["ratios"]).statistic)
    lost = max(0.0, 1 - found["utility"] / reference["utility"]) if reference["utility"] else 0.0
    return {"ks": ks, "lost": lost, "score": ks + lost}


def best(trials: Sequence[Mapping[str, Any]]) -> int:
    """The trial of the lowest score; the first of equal ones."""
    return min(range(len(trials)), key=lambda k: trials[k]["score"])
