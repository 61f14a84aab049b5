"""Plots of forgetting experiments. Each has a wide form and a narrow one, for phones."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import Any

from unlearnx.experiments.report.frame import new_figure, to_svg
from unlearnx.experiments.report.labels import label_points
from unlearnx.experiments.report.table_columns import Estimate

ACCENT, INK, MUTED = "#1f6feb", "#1c2430", "#5d6877"
SETS = {
    "retain": ("retain set", ACCENT),
    "forget": ("forget set", "#d1442f"),
    "test": ("test set", "#1a9850"),
    "test_forgotten": ("test images of the class", "#c98a00"),
}
DISTANCES = {
    "activation_distance": ("Euclidean", ACCENT),
    "js": ("Jensen-Shannon, nats", "#d1442f"),
}
WIDE, NARROW = 11.4, 3.9  # inches: the column of a page, the screen of a phone
HISTOGRAM_BINS = 36


def has(result: dict[str, Any], plot: str) -> bool:
    """Whether there is anything to plot."""
    if plot in ("sweeps", "confidences"):
        return bool(result[plot])
    if plot == "distances":
        return any("activation_distance" in point["measures"] for s in result["sweeps"] for point in s["points"])
    return bool(_pareto_points(result) if plot == "pareto" else _fidelity_points(result))


def _pareto_points(result: dict[str, Any]) -> dict[str, tuple[float, Estimate]]:
    """For each method, the seconds in per cent of retraining, and the gap."""
    reference = Estimate.find(result, "retrained", "seconds")
    points = {}
    for name in result["methods"]:
        seconds, gap = (Estimate.find(result, name, key) for key in ("seconds", "gap"))
        if reference and seconds and gap and seconds.mean > 0:
            points[name] = 100 * seconds.mean / reference.mean, gap
    return points


def _pareto(result: dict[str, Any], *, wide: bool) -> str:
    """Gap against time, both as shares of retraining; the colour is the tug of war, a line joins the front."""
    found = _pareto_points(result)
    points = {name: (share, 100 * gap.mean) for name, (share, gap) in found.items()}
    figure = new_figure(WIDE, 5.6) if wide else new_figure(NARROW, 5.6)
    axes = _style(figure.subplots())
    shares, gaps = zip(*points.values(), strict=True)
    if len(result["runs"]) > 1:
        arms = [
            [100 * (g.mean - g.low) for _, g in found.values()],
            [100 * (g.high - g.mean) for _, g in found.values()],
        ]
        axes.errorbar(shares, gaps, arms, fmt="none", ecolor="0.8", elinewidth=1.2, zorder=1)
    front = sorted(points[name] for name in result["pareto"] if name in points)
    axes.plot([x for x, _ in front], [y for _, y in front], color=ACCENT, lw=1.6, alpha=0.55, zorder=2)
    fidelity = {name: Estimate.find(result, name, "tow") for name in points}
    for name, point in points.items():
        if not fidelity[name]:
            axes.scatter(*point, s=62, color="white", edgecolor=MUTED, zorder=4)
    known = {name: e.mean for name, e in fidelity.items() if e}
    if known:
        x, y = zip(*(points[name] for name in known), strict=True)
        dots = axes.scatter(
            x, y, s=62, c=list(known.values()), cmap="viridis_r", vmin=0, vmax=1, edgecolor=INK, lw=0.6, zorder=4
        )
        bar = figure.colorbar(
            dots, ax=axes, location="right" if wide else "top", fraction=0.05, pad=0.02, aspect=25 if wide else 30
        )
        bar.set_label("tug of war: 1 is as good as retraining", fontsize=9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    axes.set_xlabel("time, % of retraining")
    axes.set_ylabel("gap to retraining, points")
    _log_axis(axes.xaxis, min(shares) / 1.7, 2 * max(*shares, 100.0))
    least, most = min(gaps), max(gaps)
    if least > 0 and most > 20 * least:
        _log_axis(axes.yaxis, least / 1.8, 1.8 * most)
    else:
        axes.set_ylim(-0.06 * most or -1, 1.12 * most or 1)
    axes.axvline(100, color="0.6", lw=1, ls="--", zorder=1)
    retraining = axes.annotate(
        "retraining",
        (100, 0.98),
        (3, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        color=MUTED,
        fontsize=8,
        va="top",
        rotation=90,
    )
    original = Estimate.find(result, "original", "gap")
    labels = dict(points)
    if original and axes.get_ylim()[0] < 100 * original.mean < axes.get_ylim()[1]:
        labels["original"] = start = axes.get_xlim()[0], 100 * original.mean  # no time at all, which has no logarithm
        axes.scatter(*start, s=56, marker="D", color="0.6", zorder=3, clip_on=False)
        axes.axhline(start[1], color="0.6", lw=1, ls=":", zorder=1)
    label_points(axes, labels, fontsize=9 if wide else 8, avoid=[retraining], line=front)
    return to_svg(figure)


def _fidelity_points(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """For each model, by how many percentage points its forget and test accuracies are above those of retraining."""
    points = {}
    for name in ("retrained", "original", *result["methods"]):
        pairs = [[Estimate.find(result, m, f"{k}_accuracy") for m in (name, "retrained")] for k in ("forget", "test")]
        differences = [100 * (own.mean - reference.mean) for own, reference in pairs if own and reference]
        if len(differences) == 2:
            points[name] = differences[0], differences[1]
    return points


def _fidelity(result: dict[str, Any], *, wide: bool) -> str:
    """What was forgotten against what is still known."""
    points = _fidelity_points(result)
    figure = new_figure(WIDE, 5.2) if wide else new_figure(NARROW, 5.2)
    axes = _style(figure.subplots())
    for name, (x, y) in points.items():
        if name == "retrained":
            axes.scatter(x, y, s=130, marker="*", color=INK, zorder=4)
        elif name == "original":
            axes.scatter(x, y, s=56, marker="D", color="0.6", zorder=3)
        else:
            front = name in result["pareto"]
            axes.scatter(x, y, s=62, color=ACCENT if front else "#9cc0f5", edgecolor=INK, lw=0.6, zorder=4)
    axes.axvline(0, color="0.6", lw=1, ls="--", zorder=1)
    axes.axhline(0, color="0.6", lw=1, ls="--", zorder=1)
    _difference_axis(axes.xaxis, [x for x, _ in points.values()])
    _difference_axis(axes.yaxis, [y for _, y in points.values()])
    axes.set_xlabel("forget accuracy, points above retraining")
    axes.set_ylabel("test accuracy, points above retraining")
    label_points(axes, points, fontsize=9 if wide else 8)
    return to_svg(figure)


def _confidences(result: dict[str, Any], *, wide: bool) -> str:
    """Confidences of the original, the best and the retrained model in the labels of each set."""
    names = [name for name in ("original", result["winner"], "retrained") if name in result["confidences"]]
    panels = {
        name: {key: _finite(values) for key, values in result["confidences"][name].items() if key in SETS}
        for name in names
    }
    pooled = sorted(v for panel in panels.values() for values in panel.values() for v in values)
    low, high = (pooled[round(q * (len(pooled) - 1))] for q in (0.002, 0.998))
    width = (high - low or 1.0) / HISTOGRAM_BINS
    edges = [low + k * width for k in range(HISTOGRAM_BINS + 1)]
    rows, columns = (1, len(names)) if wide else (len(names), 1)
    figure = new_figure(WIDE, 3.3) if wide else new_figure(NARROW, 2.1 * len(names) + 0.7)
    figure.get_layout_engine().set(h_pad=0.12)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for axes, (name, panel) in zip(grid, panels.items(), strict=True):
        for key, values in panel.items():
            label, color = SETS[key]
            counts = [0] * HISTOGRAM_BINS
            for value in values:
                counts[min(max(int((value - low) / width), 0), HISTOGRAM_BINS - 1)] += 1
            density = [count / (len(values) * width) for count in counts] if values else counts
            axes.stairs(density, edges, color=color, lw=1.5, label=label, zorder=3)
            if key == "forget":
                axes.stairs(density, edges, color=color, fill=True, alpha=0.18)
        axes.set_title(f"after {name}" if name in result["methods"] else name, fontsize=10, parse_math=False)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", nbins=6, prune="both")
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in grid if wide else grid[-1:]:
        axes.set_xlabel("logit confidence")
    _legend(figure, grid, wide)
    return to_svg(figure)


def _sweeps(result: dict[str, Any], *, wide: bool) -> str:
    """Accuracies against a hyperparameter of each method that was swept."""

    def draw(axes, values: list[float], points: list[dict[str, Any]]) -> None:
        for key, (label, color) in SETS.items():
            accuracies = [_percent(point["measures"].get(f"{key}_accuracy")) for point in points]
            if all(math.isnan(a) for a in accuracies):
                continue
            if level := Estimate.find(result, "retrained", f"{key}_accuracy"):
                axes.axhline(100 * level.mean, color=color, lw=1, ls="--", alpha=0.7, zorder=1)
            axes.plot(values, accuracies, color=color, lw=1.6, label=label, zorder=3)
            for point, accuracy in zip(points, accuracies, strict=True):
                face = color if point["applied"] else "white"
                axes.plot(point["value"], accuracy, "o", ms=5, color=color, mfc=face, zorder=4)
        axes.set_ylabel("accuracy, %")

    return _panels(result["sweeps"], draw, wide, dashed="retrained", limits=(-4, 104))


def _distances(result: dict[str, Any], *, wide: bool) -> str:
    """Distances from the retrained model on the forget set against a hyperparameter of each method that was swept."""

    def draw(axes, values: list[float], points: list[dict[str, Any]]) -> None:
        for key, (label, color) in DISTANCES.items():
            found = [math.nan if (v := point["measures"].get(key)) is None else v for point in points]
            axes.plot(values, found, "o-", color=color, ms=5, lw=1.6, label=label, zorder=3)
            if level := Estimate.find(result, "original", key):
                axes.axhline(level.mean, color=color, lw=1, ls="--", alpha=0.7, zorder=1)
        axes.set_ylabel("distance")

    return _panels(result["sweeps"], draw, wide, dashed="before", limits=(0, None))


def _panels(
    sweeps: list[dict[str, Any]],
    draw: Callable[..., None],
    wide: bool,
    dashed: str,
    limits: tuple[float | None, float | None],
) -> str:
    """A panel for each sweep, which `draw` fills, given its axes, values and points; labels of y are left of all.

    Args:
        dashed: what dashed lines are.
        limits: of y, which all panels share; None for what the values need.
    """
    columns = min(len(sweeps), 2) if wide else 1
    rows = math.ceil(len(sweeps) / columns)
    figure = new_figure((WIDE if columns == 2 else 6.5) if wide else NARROW, (3.0 if wide else 2.7) * rows + 0.5)
    figure.get_layout_engine().set(h_pad=0.12)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes in grid[len(sweeps) :]:
        axes.set_visible(False)
    for k, (axes, sweep) in enumerate(zip(grid, sweeps, strict=False)):
        _style(axes)
        points = sorted(sweep["points"], key=lambda point: point["value"])
        values = [point["value"] for point in points]
        draw(axes, values, points)
        if values[0] > 0 and values[-1] >= 10 * values[0]:
            _log_axis(axes.xaxis, values[0] / 1.2, values[-1] * 1.2)
        axes.set_title(sweep["method"], fontsize=10, parse_math=False)
        axes.set_xlabel(sweep["parameter"])
        if k % columns:
            axes.set_ylabel("")
    grid[0].set_ylim(*limits)  # once all is drawn: limits end the search for those that fit
    _legend(figure, grid[: len(sweeps)], wide, dashed=dashed)
    return to_svg(figure)


DRAWINGS: dict[str, Callable[..., str]] = {
    "pareto": _pareto,
    "fidelity": _fidelity,
    "confidences": _confidences,
    "sweeps": _sweeps,
    "distances": _distances,
}


def saliency(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the saliency panel by set: each image, and its saliency map in each model, as data URLs."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in result["saliency"]["images"]:
        overlays = [
            {"source": _overlay(entry["image"], entry[model]), "predicted": entry["predicted"][model]}
            for model in ("original", "unlearned", "retrained")
        ]
        row = {"label": entry["label"], "source": _overlay(entry["image"], None), "models": overlays}
        rows.setdefault(entry["set"], []).append(row)
    return rows


def _overlay(image: list, heat: list | None) -> str:
    """An image in [0, 1], overlaid with a saliency map where there is one, as a data URL."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.image import imsave

    picture = np.asarray(image, dtype=float).clip(0, 1)
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    if heat is not None:
        # Grey below: colour then means attention alone.
        grey = np.repeat(picture.mean(2, keepdims=True), 3, axis=2)
        weight = np.asarray(heat, dtype=float).clip(0, 1)
        alpha = 0.8 * weight[..., None]
        picture = (1 - alpha) * grey + alpha * colormaps["autumn_r"](weight)[..., :3]
    buffer = io.BytesIO()
    imsave(buffer, picture, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _style(axes):
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _log_axis(axis, low: float, high: float) -> None:
    """A log axis between two numbers, labelled with plain numbers, a few per decade where there is room."""
    axes, name = axis.axes, axis.axis_name
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    decades = math.log10(high / low)
    steps = (1,) if decades > 3.5 else (1, 3) if decades > 2 else (1, 2, 5)
    ticks = [t for e in range(-6, 6) for s in steps if low <= (t := s * 10.0**e) <= high]
    axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
    axis.set_ticks([], minor=True)


def _difference_axis(axis, values: list[float]) -> None:
    """An axis of differences in percentage points; logarithmic beyond 1 where some are larger than 10."""
    axes, name = axis.axes, axis.axis_name
    axes.margins(**{name: 0.14})
    if max(map(abs, values)) > 10:
        getattr(axes, f"set_{name}scale")("symlog", linthresh=1, linscale=0.7)
        ticks = [sign * size for size in (1, 3, 10, 30, 100) for sign in (-1, 1)]
        low, high = axis.get_view_interval()
        ticks = [0, *(t for t in ticks if low <= t <= high)]
        axis.set_ticks(ticks, [f"{t:+d}" if t else "0" for t in ticks])
        axis.set_ticks([], minor=True)


def _legend(figure, grid, wide: bool, *, dashed: str = "") -> None:
    """One legend below all panels, with a dashed line of that name."""
    from matplotlib.lines import Line2D

    handles = {label: h for axes in grid for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if dashed:
        handles[dashed] = Line2D([], [], color="0.4", lw=1, ls="--")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=len(handles) if wide else 2,
        frameon=False,
        fontsize=9,
    )


def _finite(values: list) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _percent(value: float | None) -> float:
    """A share as per cent; NaN, which plots leave out, where there is none."""
    return math.nan if value is None else 100 * value
