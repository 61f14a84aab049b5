"""The tables of forgetting experiments for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnx.experiments.report.frame import label_of, new_table, terminal_table
from unlearnx.experiments.report.nearness import far_from_retraining
from unlearnx.experiments.report.table_columns import Estimate, models_by_gap

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {
    "gap": "gap",
    "forget_accuracy": "forget",
    "retain_accuracy": "retain",
    "test_accuracy": "test",
    "mia_salun": "attack",
    "relearned_10": "back",
    "seconds": "time",
}


def table(result: dict[str, Any]) -> Table:
    """Measures against retraining, the winner, the Pareto front and warnings, for the terminal."""
    columns = [f"{SHOWN[key]}\n{result['measures'][key]['unit']}" for key in _shown(result)]
    table = new_table(result, *columns, over="means over")
    for name in models_by_gap(result):
        style = "bold" if name == result["winner"] else None
        table.add_row(label_of(result, name).replace(" (", "\n("), *_numbers(result, name), style=style)
    table.caption = "\n".join(_verdict(result))
    return table


def comparison(recorded: dict[str, Any], repeated: dict[str, Any], changed: list[str]) -> Table:
    """Recorded measures of a trial, where there are any, beside those of its repetition, for the terminal."""
    title = f"{repeated['recipe']['model']}, seed {repeated['recipe']['seed']}"
    table = terminal_table(title, "measure", "recorded", "repeated", "")
    for key, new in repeated["measures"].items():
        old = recorded.get("measures", {}).get(key)
        numbers = ("" if value is None else f"{value:.10g}" for value in (old, new))
        table.add_row(key, *numbers, "[red]differs[/]" if key in changed else "")
    return table


def _numbers(result: dict[str, Any], name: str) -> list[str]:
    """Means of the measures of a model; the gap with half of its 95 % interval, where there are several seeds."""
    cells = []
    for key in _shown(result):
        found, scale = result["summary"][name][key], 100 if result["measures"][key]["unit"] == "%" else 1
        several = key == "gap" and len(result["runs"]) > 1
        margin = f" ±{scale * (found['high'] - found['mean']):.2f}" if several else ""
        cells.append(f"{scale * found['mean']:.2f}{margin}")
    return cells


def _shown(result: dict[str, Any]) -> list[str]:
    """The measures that have a column: those that were taken of all models."""
    return [key for key in SHOWN if all(Estimate.find(result, name, key) for name in result["summary"])]


def _verdict(result: dict[str, Any]) -> list[str]:
    if result["winner"] is None:
        return ["No method was applied in every run."]
    lines = (
        ["± is half of the 95 % interval; report.html has those of all measures."] if len(result["runs"]) > 1 else []
    )
    if "relearned_10" in _shown(result):
        lines.append("back: accuracy on the rest of the forget set once 10 of its images were learned again")
    far = far_from_retraining(result, result["winner"])
    lines += [
        f"{'Smallest average gap' if far else 'Closest to retraining'}: {result['winner']}",
        *(f"It is far from retraining in {one}" for one in far),
        f"Best trade-offs of gap and time (Pareto front): {', '.join(result['pareto'])}",
    ]
    for run in result["runs"]:
        for name, entry in run["methods"].items():
            if entry["warning"]:
                lines.append(f"{name}, seed {run['seed']}: {entry['warning']}")
    return lines
