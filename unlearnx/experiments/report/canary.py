"""The report and the table of runs with a canary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unlearnx.experiments.report.frame import Page, label_of, models, new_figure, new_table, percent, to_svg
from unlearnx.metrics.skew_normal import SkewNormal

if TYPE_CHECKING:
    from rich.table import Table

MAX_ACCURACY_LOSS = 0.02  # of a method that the report highlights


def page(result: dict[str, Any]) -> Page:
    """The report: exposures, costs, what the models write, and the number among random numbers."""
    best = _best(result)
    plots = {"ranks": ranks_plot(result, best)}
    if result["sweep"]:
        plots["sweep"] = _sweep_plot(result["sweep"])
    labels = {name: label_of(result, name) for name in models(result, "before")}
    return Page("canary.html", plots, {"best": best, "labels": labels})


def table(result: dict[str, Any]) -> Table:
    """Exposures, accuracies and costs, for the terminal."""
    table = new_table(result, "exposure\nbits", "at least\nbits", "written", "accuracy", "change", "seconds", "speedup")
    for name in models(result, "before"):
        s = result["summary"][name]
        cells = [f"{s['exposure']:.1f}", f"{s['lower_bound']:.1f}", f"{s['contains']} of {len(result['runs'])}"]
        cells += [percent(s["accuracy"])]
        if name != "before":
            cells += [f"{100 * s['accuracy_change']:+.2f}", f"{s['seconds']:.2f}", f"{s['speedup']:.0f}x"]
        table.add_row(label_of(result, name), *cells)
    return table


def _best(result: dict[str, Any]) -> str:
    """The method of lowest exposure among those that keep the accuracy, or among all if none keeps it."""
    methods = {name: result["summary"][name] for name in result["methods"]}
    kept = [name for name, s in methods.items() if s["accuracy_change"] > -MAX_ACCURACY_LOSS]
    return min(kept or methods, key=lambda name: methods[name]["exposure"])


def ranks_plot(result: dict[str, Any], best: str) -> str:
    """The number's log-perplexity among those of random numbers, in three models of the first seed."""
    run = result["runs"][0]
    panels = {"before": run["before"], f"after {best}": run["methods"][best], "retrained": run["retrained"]}
    end = 1.02 * max(max(entry["histogram"]["edges"][-1], entry["log_perplexity"]) for entry in panels.values())
    figure = new_figure(10.2, 3.5)
    rows = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, (title, entry) in zip(rows, panels.items(), strict=True):
        edges, counts = (torch.tensor(entry["histogram"][key], dtype=torch.float64) for key in ("edges", "counts"))
        density = counts / (counts.sum() * edges.diff())
        axes.stairs(density, edges, fill=True, color="C0", alpha=0.35, label="random numbers")
        if entry["fit"]:
            x = torch.linspace(0, end, 500, dtype=torch.float64)
            axes.plot(x, SkewNormal(**entry["fit"]).log_density(x).exp(), color="C0", lw=1.5, label="skew-normal fit")
        own = entry["log_perplexity"]
        axes.axvline(own, color="C3", lw=1.8, label="the inserted number")
        side, gap = ("left", 4) if own < end / 2 else ("right", -4)
        axes.annotate(
            f"{own:.1f} bits",
            (own, 0.97),
            (gap, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha=side,
            va="top",
            color="C3",
            fontsize=9,
        )
        axes.set_title(
            f"{title}\nexposure {entry['exposure']:.1f} bits, at least {entry['lower_bound']:.1f}", fontsize=10
        )
        axes.set_xlabel("log-perplexity, bits")
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].set_xlim(0, end)
    rows[0].set_ylim(0, 1.15 * rows[0].get_ylim()[1])  # leaves room for the text beside the line
    rows[0].set_ylabel("density")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return to_svg(figure)


def _sweep_plot(sweep: dict[str, list[dict[str, Any]]]) -> str:
    """Exposure of trained models against the length of the number and how often it was planted."""
    figure = new_figure(10.2, 3.7)
    rows = figure.subplots(1, 2, sharey=True)
    lines = {
        "maximum": ("space_bits", "--", "0.5"),
        "exposure": ("exposure", "o-", "C3"),
        "at least": ("lower_bound", "^:", "C0"),
    }
    units = {"length": "digits", "repeats": "insertions"}
    for axes, varied, fixed in zip(rows, units, reversed(units), strict=True):
        points = sorted(sweep[varied], key=lambda point: point[varied])
        for label, (value, style, color) in lines.items():
            axes.plot([point[value] for point in points], style, color=color, label=label)
        axes.set_title(f"{points[0][fixed]} {units[fixed]}", fontsize=10)
        axes.set_xticks(range(len(points)), [point[varied] for point in points])
        axes.set_xlabel(units[varied])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].set_ylim(bottom=0)
    rows[0].set_ylabel("exposure, bits")
    figure.legend(*rows[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return to_svg(figure)
