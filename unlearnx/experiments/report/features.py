"""The report and the table of runs with features to forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnx.experiments.report.frame import Page, new_figure, terminal_table, to_svg

if TYPE_CHECKING:
    from rich.table import Table

MAX_RESIDUAL_SHARE = 0.1  # of the residual before, that the highlighted method may leave


def page(result: dict[str, Any]) -> Page:
    """The report: residuals, fidelity and costs for each number of features."""
    most = str(result["counts"][-1])
    return Page(
        "features.html",
        {"residuals": _residuals_plot(result), "costs": _costs_plot(result)},
        {"best": _best(result, most), "most": most, "joint": result["together"][most]},
    )


def table(result: dict[str, Any]) -> Table:
    """Residuals, fidelity and costs, for the terminal."""
    columns = ("features", "gradient\nresidual", "agreement\n%", "accuracy\n%", "seconds", "speedup")
    title = f"{result['experiment']}, means over {len(result['runs'])} draws"
    table = terminal_table(title, "model", *columns)
    for count, models in result["summary"].items():
        for row, (name, s) in enumerate(models.items()):
            cells = [f"{s['residual']:.2g}" if "residual" in s else ""]
            cells += [f"{100 * s[key]:.2f}" for key in ("agreement", "accuracy")]
            if "seconds" in s:
                cells += [f"{s['seconds']:.3f}", f"{s['speedup']:.1f}x"]
            table.add_row(name, "" if row else count, *cells)
    return table


def _best(result: dict[str, Any], count: str) -> str:
    """The fastest method among those that leave a small part of the residual; if none does, the most exact one."""
    models = result["summary"][count]
    methods = {name: models[name] for name in result["methods"] if "residual" in models[name]}
    exact = [name for name, s in methods.items() if s["residual"] <= MAX_RESIDUAL_SHARE * models["before"]["residual"]]
    if exact:
        return min(exact, key=lambda name: methods[name]["seconds"])
    return min(methods, key=lambda name: methods[name]["residual"])


def _residuals_plot(result: dict[str, Any]) -> str:
    """Gradient residuals against the number of features: means, and every draw."""
    figure = new_figure(10.2, 4.2)
    axes = figure.subplots()
    counts = [str(count) for count in result["counts"]]
    models = (name for name, s in result["summary"][counts[0]].items() if "residual" in s)
    for k, name in enumerate(models):
        means = [result["summary"][count][name]["residual"] for count in counts]
        style = {"before": "0.35", "retrained": "0.7"}.get(name, f"C{k}")
        axes.plot(range(len(counts)), means, "o-", color=style, label=name)
        for place, count in enumerate(counts):
            draws = [run["counts"][count][name]["residual"] for run in result["runs"]]
            axes.plot([place] * len(draws), draws, ".", color=style, alpha=0.25, ms=4)
    axes.set_yscale("log")
    axes.set_xticks(range(len(counts)), counts)
    axes.set_xlabel("features to forget")
    axes.set_ylabel("gradient residual")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return to_svg(figure)


def _costs_plot(result: dict[str, Any]) -> str:
    """Residual against seconds, for the largest number of features."""
    figure = new_figure(10.2, 3.6)
    axes = figure.subplots()
    most = str(result["counts"][-1])
    for name, s in result["summary"][most].items():
        if not {"seconds", "residual"} <= s.keys():
            continue
        axes.plot(s["seconds"], s["residual"], "o")
        axes.annotate(name, (s["seconds"], s["residual"]), (6, 5), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("seconds")
    axes.set_ylabel("gradient residual")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return to_svg(figure)
