"""What the runs of several seeds say together: intervals, the winner and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

CONFIDENCE = 0.95
UNBOUNDED = ("activation_distance", "relearn_time", "seconds", "runtime_ratio")  # other measures are at most 1


def interval(values: Sequence[float | None], highest: float = math.inf) -> dict[str, float | None]:
    """Mean, and the ends ``low`` and ``high`` of its 95 % Student t interval; all equal for a single value.

    Measures lie between 0 and `highest`, and so does the interval. Where a value is missing or not finite there is no
    mean either: all three are None.
    """
    found = [value for value in values if value is not None and math.isfinite(value)]
    if len(found) < len(values):
        return dict.fromkeys(("mean", "low", "high"))
    mean, margin = fmean(found), 0.0
    if len(found) > 1:
        from scipy.stats import t

        margin = float(t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * stdev(found) / math.sqrt(len(found))
    return {"mean": mean, "low": max(0.0, mean - margin), "high": min(highest, mean + margin)}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The interval of every measure of every model over the runs."""
    models = [{"original": run["original"], "retrained": run["retrained"], **run["methods"]} for run in runs]
    return {
        name: {
            key: interval([run[name]["measures"][key] for run in models], math.inf if key in UNBOUNDED else 1.0)
            for key in entry["measures"]
        }
        for name, entry in models[0].items()
    }


def applied(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The methods that were applied in every run."""
    return [name for name in runs[0]["methods"] if all(run["methods"][name]["info"]["applied"] for run in runs)]


def winner(summary: dict[str, dict[str, Any]], names: Sequence[str]) -> str | None:
    """The method of these with the smallest mean gap to retraining; None where there is none."""
    return min(names, key=lambda name: summary[name]["gap"]["mean"], default=None)


def pareto_front(summary: dict[str, dict[str, Any]], names: Sequence[str]) -> list[str]:
    """The methods of these that no other one beats in gap without being slower, or in seconds without a larger gap."""

    def cost(name: str) -> tuple[float, float]:
        return summary[name]["gap"]["mean"], summary[name]["seconds"]["mean"]

    def beaten(name: str) -> bool:
        gap, seconds = cost(name)
        return any(g <= gap and s <= seconds and (g, s) != (gap, seconds) for g, s in map(cost, names))

    return sorted((name for name in names if not beaten(name)), key=cost)
