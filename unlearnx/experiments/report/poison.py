"""The report and the table of poisoning runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unlearnx.experiments.report.frame import Page, named, new_figure, new_table, over_runs, percent, to_svg

if TYPE_CHECKING:
    from rich.table import Table


def page(result: dict[str, Any]) -> Page:
    """The report: accuracies, times, confusion matrices and measures of every class."""
    best = max(result["summary"], key=lambda name: result["summary"][name]["accuracy"])
    references = over_runs(result, "clean", "poisoned", "retrained")
    return Page(
        "poison.html",
        {"restored": _restored_plot(result), "confusion": _confusion_plot(result, best)},
        {
            "best": best,
            **{name: numbers["accuracy"] for name, numbers in references.items()},
            "retraining_seconds": references["retrained"]["seconds"],
        },
    )


def table(result: dict[str, Any]) -> Table:
    """Accuracies and costs, for the terminal."""
    table = new_table(result, "test\naccuracy", "restored", "seconds", "speedup", "gradients")
    for key, numbers in over_runs(result, "clean", "poisoned").items():
        table.add_row(key, percent(numbers["accuracy"]))
    for name, s in result["summary"].items():
        cells = (percent(s["accuracy"]), percent(s["restored"]), f"{s['total_seconds']:.2f}", f"{s['speedup']:.0f}x")
        table.add_row(named(result, name), *cells, f"{s['gradient_evaluations']:,.0f}")
    retrained = over_runs(result, "retrained")["retrained"]
    name, seconds = f"retrained ({result['retraining']})", f"{retrained['seconds']:.2f}"
    table.add_row(name, percent(retrained["accuracy"]), "", seconds, "1x", "")
    return table


def _restored_plot(result: dict[str, Any]) -> str:
    """Share of the lost accuracy that came back, against the time it took relative to retraining."""
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    for k, (name, summary) in enumerate(result["summary"].items()):
        share = 1 / summary["speedup"]
        axes.scatter(100 * share, 100 * summary["restored"], s=70, color=f"C{k}", zorder=3, label=name)
    axes.axhline(100, color="0.6", lw=1, ls="--")
    axes.axhline(0, color="0.6", lw=1)
    axes.axvline(5, color="0.6", lw=1, ls=":")
    axes.text(5, 2, " 1/20 of retraining", color="0.4", fontsize=8, va="bottom")
    axes.set_xscale("log")
    axes.set_xlim(0.6 * min(100 / s["speedup"] for s in result["summary"].values()), 110)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t >= axes.get_xlim()[0]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time, % of retraining")
    axes.set_ylabel("lost accuracy restored, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return to_svg(figure)


def _confusion_plot(result: dict[str, Any], best: str) -> str:
    """Confusion matrices, in per cent of each label, of the first seed."""
    run, classes = result["runs"][0], result["classes"]
    panels = {"clean": run["clean"], "poisoned": run["poisoned"], f"after {best}": run["methods"][best]}
    figure = new_figure(12.6, 4.4)
    for k, (axes, (title, entry)) in enumerate(zip(figure.subplots(1, 3), panels.items(), strict=True)):
        rows = torch.tensor(entry["confusion"], dtype=torch.float64)
        shares = 100 * rows / rows.sum(1, keepdim=True).clamp(min=1)
        axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
        axes.set_title(f"{title}: {100 * entry['accuracy']:.1f} %", fontsize=11)
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), classes if k == 0 else [""] * len(classes), fontsize=8)
        axes.set_xlabel("predicted", fontsize=9)
        for i in range(len(classes)):
            for j in range(len(classes)):
                if shares[i, j] >= 0.5:
                    color = "white" if shares[i, j] > 55 else "black"
                    axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=7, color=color)
        if k == 0:
            axes.set_ylabel("label", fontsize=9)
    return to_svg(figure)
