"""Measures of several models as columns of a table: values of equal precision, intervals, and the best method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from unlearnx.experiments.comparison import applied

DASH = "\N{EN DASH}"  # between the ends of an interval, and in place of a missing number


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to show."""
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Estimate:
    """The mean of a measure over the seeds and its 95 % interval; ends equal to the mean where there is none."""

    mean: float
    low: float
    high: float

    @classmethod
    def find(cls, result: dict[str, Any], model: str, key: str) -> Estimate | None:
        """The estimate in the summary of a model; None where the measure was not taken."""
        entry = result["summary"].get(model, {}).get(key) or {}
        if not known(mean := entry.get("mean")):
            return None
        return cls(mean, *(end if known(end := entry.get(key)) else mean for key in ("low", "high")))


def models_by_gap(result: dict[str, Any]) -> list[str]:
    """The names of the rows of tables: the retrained model, the methods by their gap, and the original model."""

    def gap(name: str) -> float:
        estimate = Estimate.find(result, name, "gap")
        return estimate.mean if estimate else math.inf

    return ["retrained", *sorted(result["methods"], key=gap), "original"]


@dataclass(frozen=True)
class Cell:
    """An entry of a table: the mean, its interval, and whether it is the best of all methods."""

    text: str = DASH
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A measure of all models, ready to be shown."""

    title: str
    unit: str
    note: str
    cells: dict[str, Cell]


def column(result: dict[str, Any], key: str) -> Column:
    """The column of one measure."""
    measure = result["measures"][key]
    estimates = {model: Estimate.find(result, model, key) for model in result["summary"]}
    means = {model: e.mean for model, e in estimates.items() if e is not None}
    scale = 100.0 if measure["unit"] == "%" else 1.0
    decimals = _decimals(measure["unit"], list(means.values()))
    best = _best(means, measure["ideal"], applied(result["runs"]))

    def text(value: float) -> str:
        return f"{scale * value:,.{decimals}f}"

    def cell(model: str, e: Estimate | None) -> Cell:
        if e is None:
            return Cell()
        interval = f"{text(e.low)} {DASH} {text(e.high)}" if text(e.low) != text(e.high) else ""
        return Cell(text(e.mean), interval, model in best)

    cells = {model: cell(model, e) for model, e in estimates.items()}
    return Column(measure["title"], measure["unit"], measure["note"], cells)


def speedups(result: dict[str, Any]) -> Column:
    """How many times faster than retraining each method was."""
    cells = dict.fromkeys(result["summary"], Cell(""))
    values = {model: value for model in (*result["methods"], "retrained") if (value := speedup(result, model))}
    best = _best(values, "high", applied(result["runs"]))
    cells |= {model: Cell(f"{value:,.1f}", "", model in best) for model, value in values.items()}
    return Column(
        "speedup",
        "\N{MULTIPLICATION SIGN}",
        "Seconds of retraining over those of the method, means over the seeds.",
        cells,
    )


def speedup(result: dict[str, Any], model: str) -> float | None:
    """Seconds of retraining over those of the model, None where either is unknown."""
    own, reference = (Estimate.find(result, m, "seconds") for m in (model, "retrained"))
    return reference.mean / own.mean if own and reference and own.mean > 0 else None


def _decimals(unit: str, values: list[float]) -> int:
    """How many decimals tell the values of a column apart."""
    if unit == "%":
        return 2
    sizes = [abs(v) for v in values if v] or [1.0]
    if unit == "s":  # two digits of the shortest time
        return min(3, max(0, 1 - math.floor(math.log10(min(sizes)))))
    return min(6, max(3, 2 - math.floor(math.log10(max(sizes)))))  # three of the largest number


def _best(values: dict[str, float], ideal: str, competing: list[str]) -> set[str]:
    """The models closest to the ideal among those that compete; none if all are equally close."""
    if ideal == "retrained":
        if "retrained" not in values:
            return set()
        distances = {m: abs(v - values["retrained"]) for m, v in values.items()}
    else:
        distances = {m: v if ideal == "low" else -v for m, v in values.items()}
    distances = {m: distances[m] for m in competing if m in distances}
    if len(distances) < 2:
        return set()
    nearest = min(distances.values())
    best = {m for m, d in distances.items() if math.isclose(d, nearest, rel_tol=1e-9, abs_tol=1e-12)}
    return best if len(best) < len(distances) else set()
