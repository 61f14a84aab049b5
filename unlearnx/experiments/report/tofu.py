"""The report and the table of runs of TOFU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnx.experiments.report.frame import Page, label_of, models, new_figure, new_table, to_svg

if TYPE_CHECKING:
    from rich.table import Table

LEVEL = 0.05  # of the test of forget quality: below it two models differ


def page(result: dict[str, Any]) -> Page:
    """The report: forget quality beside utility, attacks, what comes back, all measures, and strengths."""
    labels = {name: label_of(result, name) for name in models(result, "original")}
    by_kind = {
        "back": [key for key in result["measures"] if key.startswith(("rounded", "relearned", "paraphrased"))],
        "attacks": [key for key in result["measures"] if key.startswith("mia")],
        "others": [key for key in result["measures"] if key.startswith(("retain", "real_authors", "world_facts"))],
    }
    return Page("tofu.html", {"quality": _quality_plot(result)}, {"labels": labels, "kinds": by_kind, "show": show})


def table(result: dict[str, Any]) -> Table:
    """Forget quality, utility and costs, for the terminal."""
    columns = "forget\nquality", "utility", "truth\nratio", "answer", "attack\nMin-K%", "4 bits", "seconds"
    keys = "forget_quality", "utility", "forget_truth_ratio", "forget_probability", "mia_min_k", "rounded_4", "seconds"
    found = new_table(result, *columns)
    for name in models(result, "original"):
        found.add_row(label_of(result, name), *(show(result["summary"][name].get(key), key) for key in keys))
    return found


def show(value: float | None, key: str) -> str:
    """A number of a measure; nothing where there is none."""
    if value is None:
        return ""
    if key in ("forget_quality", "quality_low", "quality_high"):
        return f"{value:.2g}"
    return f"{value:.0f}" if key == "seconds" else f"{value:.3f}"


def _quality_plot(result: dict[str, Any]) -> str:
    """Utility against forget quality: a method should be right of the line and as high as the retrained model."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for name in models(result, "original"):
        summary = result["summary"][name]
        quality = max(summary["forget_quality"], 1e-30)
        kind = "C1" if name == result["best"] else "C0" if name in result["methods"] else "k"
        axes.plot(quality, summary["utility"], "o", color=kind)
        axes.annotate(name, (quality, summary["utility"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axvline(LEVEL, color="0.7", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("forget quality, p")
    axes.set_ylabel("model utility")
    return to_svg(figure)
