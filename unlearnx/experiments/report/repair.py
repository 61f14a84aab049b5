"""The report and the table of repairs of models that learned from noisy data."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnx.experiments.comparison import medians
from unlearnx.experiments.report.frame import Page, named, new_figure, new_table, over_runs, percent, to_svg

if TYPE_CHECKING:
    from rich.table import Table

REFERENCES = {
    "clean": "trained on clean data",
    "noisy": "trained on noisy data",
    "retrained": "retrained without the samples found",
}


def page(result: dict[str, Any]) -> Page:
    """The report: scores, treatments, curves and the worst samples."""
    plots = {}
    for suffix, width in (("", 1.0), ("_narrow", 0.55)):
        plots[f"precision{suffix}"] = _precision_plot(result, width)
        plots[f"removal{suffix}"] = _removal_plot(result, width)
    references = over_runs(result, *REFERENCES)
    return Page(
        "repair.html",
        plots,
        {
            "best": _best(result),
            "best_score": _best_score(result),
            "references": references,
            "recovered_by_retraining": references["retrained"].get("recovered"),
            "titles": REFERENCES,
            **over_runs(result, "found"),
            **medians(result["runs"], ("failures", "seconds")),
            "pictures": [{**entry, "source": _picture(entry["image"])} for entry in result["worst"]],
        },
    )


def table(result: dict[str, Any]) -> Table:
    """Accuracies and costs, for the terminal; the scores are in its caption."""
    table = new_table(result, "test\naccuracy", "recovered", "failures\nright", "seconds", "gradients")
    for name, numbers in over_runs(result, *REFERENCES).items():
        cells = (percent(numbers["accuracy"]), "", percent(numbers["failure_accuracy"]), f"{numbers['seconds']:.2f}")
        table.add_row(REFERENCES[name], *cells, "")
    for name, s in result["summary"].items():
        recovered = percent(s["recovered"]) if "recovered" in s else ""
        cells = (percent(s["accuracy"]), recovered, percent(s["failure_accuracy"]), f"{s['seconds']:.2f}")
        table.add_row(named(result, name), *cells, f"{s['gradient_evaluations']:,.0f}")
    table.caption = "AUROC: " + ", ".join(f"{name} {s['auroc']:.4f}" for name, s in result["score_summary"].items())
    return table


def _best(result: dict[str, Any]) -> str:
    return max(result["summary"], key=lambda name: result["summary"][name]["accuracy"])


def _best_score(result: dict[str, Any]) -> str:
    return max(result["score_summary"], key=lambda name: result["score_summary"][name]["auroc"])


def _precision_plot(result: dict[str, Any], width: float) -> str:
    """Precision against recall of every score, of the first seed."""
    figure = new_figure(8.6 * width, 4.2)
    axes = figure.subplots()
    scores = result["runs"][0]["scores"]
    for k, (name, entry) in enumerate(scores.items()):
        curve = entry["curve"]
        recall, precision = ([100 * v for v in curve[key]] for key in ("recall", "precision"))
        axes.plot(recall, precision, color=f"C{k}", lw=1.8, label=f"{name}, AUROC {entry['auroc']:.3f}")
    found = result["runs"][0]["found"]
    axes.plot(
        100 * found["recall"], 100 * found["precision"], "o", color="black", ms=7, label="samples found", zorder=4
    )
    axes.axhline(100 * result["noise"]["share"], color="0.6", lw=1, ls="--", label="at random")
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 104)
    axes.set_xlabel("recall of the spoilt samples, %")
    axes.set_ylabel("precision, %")
    _finish(figure, axes, width)
    return to_svg(figure)


def _removal_plot(result: dict[str, Any], width: float) -> str:
    """Test accuracy after training on without the worst samples, against their number; medians over the seeds."""
    figure = new_figure(8.6 * width, 4.2)
    axes = figure.subplots()
    runs, scores = result["runs"], list(result["scores"])
    noisy, clean = (100 * m["accuracy"] for m in over_runs(result, "noisy", "clean").values())
    for name, points in runs[0]["curves"].items():
        numbers = [point["points"] for point in points]
        values = [100 * medians([run["curves"][name][i] for run in runs])["accuracy"] for i in range(len(points))]
        color = f"C{scores.index(name)}" if name in scores else "0.55"
        axes.plot(numbers, values, marker="o", ms=4, lw=1.8, label=name, color=color)
    axes.axhline(clean, color="0.4", lw=1, ls="--", label="trained on clean data")
    axes.axhline(noisy, color="0.4", lw=1, ls=":", label="trained on noisy data")
    axes.axvline(result["noise"]["points"], color="0.6", lw=1, ls=":")
    axes.annotate(
        "all that are spoilt",
        (result["noise"]["points"], 0.02),
        (-4, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="0.4",
    )
    axes.set_xlim(left=0)
    axes.set_xlabel("samples removed")
    axes.set_ylabel("test accuracy, %")
    _finish(figure, axes, width)
    return to_svg(figure)


def _finish(figure, axes, width: float) -> None:
    """Grid and legend: beside a wide plot, below a narrow one."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if width == 1.0:
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=9)
        figure.set_figheight(5.4)


def _picture(image: list[list[float]]) -> str:
    """An image (H, W), dark ink on white, as a data URL."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.asarray(image), cmap="gray_r", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
