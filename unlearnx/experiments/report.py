"""Reports of runs: result.json for programs, report.html for people, both written whole or not at all."""

from __future__ import annotations

import base64
import io
import json
import platform
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from unlearnx import build_info
from unlearnx._files import write_atomically


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on besides its configuration."""
    return {
        "unlearnx": build_info(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }


def write(result: dict[str, Any], folder: Path) -> Path:
    """Write `result` as result.json and report.html under `folder`; returns the path of the report."""
    text = json.dumps(result, indent=1)
    write_atomically(folder / "result.json", lambda file: file.write(text.encode()))
    report = folder / "report.html"
    page = _render(result)
    write_atomically(report, lambda file: file.write(page.encode()))
    return report


def _render(result: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    template = files("unlearnx.experiments").joinpath("report.html").read_text()
    engine = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    first = result["runs"][0]
    best = max(result["summary"], key=lambda name: result["summary"][name]["accuracy"])
    return engine.from_string(template).render(
        result=result,
        first=first,
        best=best,
        clean=_median_of(result, "clean"),
        poisoned=_median_of(result, "poisoned"),
        retrained=_median_of(result, "retrained"),
        retraining_seconds=sorted(run["retrained"]["seconds"] for run in result["runs"])[len(result["runs"]) // 2],
        restored_plot=_restored_plot(result),
        confusion_plot=_confusion_plot(result, best),
    )


def _median_of(result: dict[str, Any], which: str) -> float:
    values = sorted(run[which]["accuracy"] for run in result["runs"])
    return values[len(values) // 2]


def _inline(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _restored_plot(result: dict[str, Any]) -> str:
    """Share of the lost accuracy that came back, against the time it took relative to retraining."""
    figure = _figure(7.2, 3.6)
    axes = figure.subplots()
    for k, (name, summary) in enumerate(result["summary"].items()):
        share = 1 / summary["speedup"]
        axes.scatter(100 * share, 100 * summary["restored"], s=70, color=f"C{k}", zorder=3, label=name)
    axes.axhline(100, color="0.6", lw=1, ls="--")
    axes.axhline(0, color="0.6", lw=1)
    axes.axvline(5, color="0.6", lw=1, ls=":")
    axes.text(5, 2, " 1/20 of retraining", color="0.4", fontsize=8, va="bottom")
    axes.set_xscale("log")
    axes.set_xlabel("time, % of retraining")
    axes.set_ylabel("lost accuracy restored, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return _inline(figure)


def _confusion_plot(result: dict[str, Any], best: str) -> str:
    """Confusion matrices, in per cent of each label, of the first seed."""
    run, classes = result["runs"][0], result["classes"]
    panels = {"clean": run["clean"], "poisoned": run["poisoned"], f"after {best}": run["methods"][best]}
    figure = _figure(12.6, 4.4)
    for k, (axes, (title, entry)) in enumerate(zip(figure.subplots(1, 3), panels.items(), strict=True)):
        rows = torch.tensor(entry["confusion"], dtype=torch.float64)
        shares = 100 * rows / rows.sum(1, keepdim=True).clamp(min=1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
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
    return _inline(figure)
