"""The report and the table of runs with a canary in a pretrained language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnx.experiments.report.canary import ranks_plot
from unlearnx.experiments.report.frame import Page, label_of, models, new_table

if TYPE_CHECKING:
    from rich.table import Table

NEAR = 1.02  # of the retrained model's perplexity, that of a method that the report highlights


def page(result: dict[str, Any]) -> Page:
    """The report: exposures, perplexities, costs, what the models write, and the number among random numbers."""
    best = _best(result)
    labels = {name: label_of(result, name) for name in models(result, "before")}
    return Page("canary_lm.html", {"ranks": ranks_plot(result, best)}, {"best": best, "labels": labels})


def table(result: dict[str, Any]) -> Table:
    """Exposures, perplexities and costs, for the terminal."""
    columns = "exposure\nbits", "at least\nbits", "written", "perplexity\nlearned", "unseen", "seconds", "speedup"
    table = new_table(result, *columns)
    for name in models(result, "before"):
        s = result["summary"][name]
        cells = [f"{s['exposure']:.1f}", f"{s['lower_bound']:.1f}", f"{s['contains']} of {len(result['runs'])}"]
        cells += [f"{s['learned_perplexity']:.2f}", f"{s['unseen_perplexity']:.2f}"]
        if name != "before":
            cells += [f"{s['seconds']:.1f}", f"{s['speedup']:.1f}x"]
        table.add_row(label_of(result, name), *cells)
    return table


def _best(result: dict[str, Any]) -> str:
    """The method of lowest exposure among those with a perplexity near retraining's, or among all if none has."""
    methods = {name: result["summary"][name] for name in result["methods"]}
    most = NEAR * result["summary"]["retrained"]["unseen_perplexity"]
    kept = [name for name, s in methods.items() if s["unseen_perplexity"] <= most]
    return min(kept or methods, key=lambda name: methods[name]["exposure"])
