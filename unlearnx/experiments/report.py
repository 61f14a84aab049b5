"""Reports of runs: result.json for programs, report.html for people, both written whole or not at all."""

from __future__ import annotations

import base64
import io
import json
import math
import platform
from importlib.resources import files
from pathlib import Path
from statistics import median
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
    """Write `result` as result.json, its plots and report.html under `folder`; returns the path of the report."""
    best = max(result["summary"], key=lambda name: result["summary"][name]["accuracy"])
    plots = {"restored": _restored_plot(result), "confusion": _confusion_plot(result, best)}
    contents = {
        "result.json": json.dumps(_finite(result), indent=1, allow_nan=False),
        "report.html": _render(result, best, plots),
    }
    contents.update({f"{name}.svg": svg for name, svg in plots.items()})
    for name, text in contents.items():
        _write(folder / name, text)
    return folder / "report.html"


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _render(result: dict[str, Any], best: str, plots: dict[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined

    template = files("unlearnx.experiments").joinpath("report.html").read_text()
    engine = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return engine.from_string(template).render(
        result=result,
        first=result["runs"][0],
        best=best,
        clean=_median(result, "clean", "accuracy"),
        poisoned=_median(result, "poisoned", "accuracy"),
        retrained=_median(result, "retrained", "accuracy"),
        retraining_seconds=_median(result, "retrained", "seconds"),
        **{f"{name}_plot": _inline(svg) for name, svg in plots.items()},
    )


def _median(result: dict[str, Any], which: str, key: str) -> float:
    return median(run[which][key] for run in result["runs"])


def _svg(figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def _inline(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


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
    axes.set_xlim(0.6 * min(100 / s["speedup"] for s in result["summary"].values()), 110)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t >= axes.get_xlim()[0]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time, % of retraining")
    axes.set_ylabel("lost accuracy restored, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


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
    return _svg(figure)
