"""Runs of several seeds taken together: medians, intervals, the winner and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

CONFIDENCE_LEVEL = 0.95
# All other measures lie in [0, 1].
UNBOUNDED_MEASURES = ("activation_distance", "relearn_time", "seconds", "runtime_ratio", "gradient_ratio")


def medians(entries: Sequence[Mapping[str, Any]], keys: Iterable[str] | None = None) -> dict[str, float]:
    """Medians over entries, one of each run, of the numbers that all of them have.

    Args:
        entries: numbers, among other things, by key.
        keys: of the numbers that are wanted; None for all.
    """
    columns: dict[str, list[Any]] = {
        key: [entry.get(key) for entry in entries] for key in (entries[0] if keys is None else keys)
    }
    return {key: median(c) for key, c in columns.items() if all(isinstance(value, (int, float)) for value in c)}


def interval(values: Sequence[float | None], highest: float = math.inf) -> dict[str, float | None]:
    """Mean, and the ends ``low`` and ``high`` of its 95 % Student t interval; all three are equal for a single value.

    The interval is cut off at 0 and `highest`, between which the measure lies. Where a value is missing or not finite,
    all three are None.
    """
    found = [value for value in values if value is not None and math.isfinite(value)]
    if len(found) < len(values):
        return dict.fromkeys(("mean", "low", "high"))
    mean, margin = fmean(found), 0.0
    if len(found) > 1:
        from scipy.stats import t

        margin = float(t.ppf((1 + CONFIDENCE_LEVEL) / 2, len(found) - 1)) * stdev(found) / math.sqrt(len(found))
    return {"mean": mean, "low": max(0.0, mean - margin), "high": min(highest, mean + margin)}


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The interval of every measure of every model over the runs; of None where an earlier trial lacks it."""
    models = [{"original": run["original"], "retrained": run["retrained"], **run["methods"]} for run in runs]
    return {
        name: {
            key: interval(
                [run[name]["measures"].get(key) for run in models], math.inf if key in UNBOUNDED_MEASURES else 1.0
            )
            for key in entry["measures"]
        }
        for name, entry in models[0].items()
    }


def applied(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The methods that were applied in every run."""
    return [name for name in runs[0]["methods"] if all(run["methods"][name]["applied"] for run in runs)]


def winner(summary: dict[str, dict[str, Any]], names: Sequence[str]) -> str | None:
    """The one of these methods with the smallest mean gap to retraining; None where there are no methods."""
    return min(names, key=lambda name: summary[name]["gap"]["mean"], default=None)


def pareto_front(summary: dict[str, dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Those of these methods that no other one beats in gap or seconds without being worse in the other."""

    def cost(name: str) -> tuple[float, float]:
        return summary[name]["gap"]["mean"], summary[name]["seconds"]["mean"]

    def beaten(name: str) -> bool:
        gap, seconds = cost(name)
        return any(g <= gap and s <= seconds and (g, s) != (gap, seconds) for g, s in map(cost, names))

    return sorted((name for name in names if not beaten(name)), key=cost)
