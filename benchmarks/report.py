"""Tables and plots of the committed results, for README.md and docs/benchmarks.md.

    python benchmarks/report.py             writes both anew from benchmarks/results
    python benchmarks/report.py --check     writes nothing, and exits with 1 where they say something else

README.md takes its tables between ``<!-- results: NAME -->`` and ``<!-- end -->``. docs/benchmarks.md holds every
comparison of speed, docs/benchmarks.svg the costs in passes over the data.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.units import UNIT
from unlearnx.experiments.report.table_columns import speedup

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = "docs/benchmarks.md"
PLOT = "docs/benchmarks.svg"
OURS = "ours"
DASH = "\N{EN DASH}"


def read(name: str) -> dict[str, Any]:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""

    def line(cells: list[str]) -> str:
        return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"

    return "\n".join([line(head), f"|{'---|' * len(head)}", *map(line, rows)])


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def times(ratio: float) -> str:
    """How many times as fast."""
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


POISON_CIFAR = {
    ("default", "first order"): "`FirstOrder()`, last six tensors",
    ("default", "second order"): "`SecondOrder()`, last six tensors",
    ("default", "fine-tuning"): "`FineTune(epochs=3)`, last six tensors",
    ("default", "fine-tuning, last block"): "`FineTune(epochs=3, lr=2e-3)`, last block",
    ("best", "fine-tuning, last block, mirrored"): "preset `best`: last block, images and mirror images",
}


def poison_cifar() -> str:
    """A poisoned network repaired."""
    results = {preset: read(f"poison-cifar-{preset}") for preset in ("default", "best")}
    run = results["default"]["runs"][0]
    rows = [
        [f"trained on {what} labels", percent(run[key]["accuracy"]), "", "", ""]
        for key, what in (("clean", "clean"), ("poisoned", "poisoned"))
    ]
    for (preset, name), label in POISON_CIFAR.items():
        s = results[preset]["summary"][name]
        numbers = percent(s["accuracy"]), percent(s["restored"], 1), f"{s['total_seconds']:.0f}", times(s["speedup"])
        rows.append([label, *numbers])
    head = ["model", "test accuracy", "lost accuracy restored", "seconds, features included", "faster than retraining"]
    return markdown(head, rows)


FORGET_DIGITS = {
    "second-order": "`SecondOrder(ConjugateGradient(), damping=1e-2, ...)`",
    "stochastic-teacher": "`StochasticTeacher()`",
    "ssd": "`SSD()`",
    "gradient-ascent": "`GradientAscent()`",
    "fisher-masking": "`FisherMasking()`, with `FineTune` for the tenth",
    "salun": "`SalUn()`",
    "random-perturbation": "`RandomPerturbation()` and `FineTune(epochs=4)`",
    "bad-teacher": "`BadTeacher()`",
    "neg-grad": "`NegGrad()`",
    "scrub": "`SCRUB()`",
    "fine-tune": "`FineTune(epochs=5)`",
    "first-order": "`FirstOrder(...)`",
    "original": "untouched",
    "retrained": "retrained",
}


def forget_digits() -> str:
    """Every method on the digits, a class and a random tenth."""
    results = [read("forget-class-digits"), read("forget-random-digits")]
    parts = [("forget", "retain", "test"), ("forget", "test")]

    def cells(result: dict[str, Any], name: str, accuracies: tuple[str, ...]) -> list[str]:
        s = result["summary"][name]
        gap = s["gap"]
        competes = name in result["methods"]
        faster = times(speedup(result, name) or 0) if competes else ""
        margin = f" ± {100 * (gap['high'] - gap['mean']):.2f}" if competes else ""
        found = [f"{100 * s[f'{part}_accuracy']['mean']:.1f}" for part in accuracies]
        return [f"{100 * gap['mean']:.2f}{margin}", *found, faster]

    def place(name: str) -> tuple[bool, float]:
        """Methods by their gap, then what they began with and what is to be reached."""
        gap = results[0]["summary"][name]["gap"]["mean"]
        return (False, gap) if name in results[0]["methods"] else (True, -gap)

    rows = [
        [label, *(cell for result, part in zip(results, parts, strict=True) for cell in cells(result, name, part))]
        for name, label in sorted(FORGET_DIGITS.items(), key=lambda item: place(item[0]))
    ]
    head = ["method", "class: gap, %", "forget", "retain", "test", "faster"]
    return markdown([*head, "tenth: gap, %", "forget", "test", "faster"], rows)


FORGET_CIFAR = {
    "original": "untouched",
    "second-order": '`SecondOrder(ConjugateGradient(), damping=1e-2, step=1, params="last:2")`',
    "ssd": "`SSD()`",
    "fine-tune-anchored": "`FineTune(epochs=2, anchor=1e-2)`",
    "fine-tune": "`FineTune(epochs=2)`",
    "retrained": "retrained",
}


def forget_cifar() -> str:
    """A class of CIFAR-10 forgotten."""
    result = read("forget-class-cifar")
    rows = []
    for name, label in FORGET_CIFAR.items():
        s = {key: entry["mean"] for key, entry in result["summary"][name].items()}
        accuracies = [percent(s[f"{part}_accuracy"]) for part in ("forget", "test", "test_forgotten")]
        spent = "" if name == "original" else f"{s['seconds']:.0f}"
        faster = f"{speedup(result, name):.1f}x" if name in result["methods"] else ""
        rows.append([label, *accuracies, f"{100 * s['gap']:.2f}", spent, faster])
    forgotten = result["request"]["class_name"]
    head = ["model", "forget", "test, the other nine", f"test, {forgotten}", "gap, %", "seconds", "faster"]
    return markdown(head, rows)


REPAIR = {
    "fine-tuning": "`FineTune(epochs=5, lr=5e-3, weight_decay=1)` without them",
    "relabelling": "the same, with the labels that the other networks propose",
    "EWC repair, fine-tuning": "`EWCRepair()`, then the same",
    "Newton repair": '`NewtonRepair(params="last:4")`',
    "EWC repair, energy alignment": "`EWCRepair()`, then `EnergyAlignment()`",
    "EWC repair": "`EWCRepair()`",
}


def repair() -> str:
    """A network that learned from wrong labels, treated."""
    result = read("repair-mnist")
    trained = {name: [run[name] for run in result["runs"]] for name in ("clean", "noisy", "retrained")}
    medians = {name: {key: median(e[key] for e in runs) for key in runs[0]} for name, runs in trained.items()}
    rows = [
        [f"trained on {name} labels", percent(medians[name]["accuracy"]), "", "", f"{medians[name]['seconds']:.0f}"]
        for name in ("clean", "noisy")
    ]
    treated = {label: result["summary"][name] for name, label in REPAIR.items()}
    for label, s in {**treated, "trained anew without them": medians["retrained"]}.items():
        numbers = percent(s["accuracy"]), percent(s["recovered"], 0), percent(s["failure_accuracy"], 0)
        rows.append([label, *numbers, f"{s['seconds']:.0f}"])
    return markdown(["model", "test accuracy", "lost accuracy recovered", "failures put right", "seconds"], rows)


def features() -> str:
    """Addresses forgotten by a malware detector."""
    result = read("features-drebin")
    most = str(result["counts"][-1])
    rows = []
    for name, s in result["summary"][most].items():
        residual = f"{s['residual']:.2g}" if "residual" in s else ""
        cost = [f"{s['seconds']:.3f}", times(s["speedup"])] if "seconds" in s else ["", ""]
        rows.append([name, residual, percent(s["agreement"]), percent(s["accuracy"]), *cost])
    head = ["model", "gradient residual", "predicts as the retrained model", "accuracy", "seconds", "faster"]
    return markdown(head, rows)


README_TABLES: dict[str, Callable[[], str]] = {
    "poison-cifar": poison_cifar,
    "forget-digits": forget_digits,
    "forget-cifar": forget_cifar,
    "repair-mnist": repair,
    "features-drebin": features,
}


def with_tables(text: str) -> str:
    """README.md with its tables made anew.

    Raises:
        ValueError: it names a table that there is none of, or leaves one out.
    """

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}\n{README_TABLES[match[2]]()}\n{match[3]}"

    names = re.findall(r"<!-- results: (\S+) -->", text)
    if sorted(names) != sorted(README_TABLES):
        raise ValueError(f"README.md has places for {names}, expected each of {list(README_TABLES)}")
    return re.sub(r"(<!-- results: (\S+) -->)\n.*?(<!-- end -->)", replaced, text, flags=re.S)


def comparisons() -> dict[str, dict[str, Any]]:
    """The committed results of pytest-benchmark, by the names of their files."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    return {name: result for name, result in found.items() if "benchmarks" in result}


def competitors(entry: dict[str, Any]) -> str:
    """How many times as long everybody else takes, the fastest first."""
    ratios = entry["extra_info"].get("ratios", {})
    others = {name: ratio for name, ratio in ratios.items() if name != UNIT}
    return "; ".join(f"{name} **{r:.2f}**" for name, r in sorted(others.items(), key=lambda item: item[1]))


def page() -> str:
    """docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        "All comparisons of speed under `benchmarks/results`, as shown by `python benchmarks/report.py`. "
        "Both sides of a row took turns in one process; medians. The last column is the time of everybody else in "
        "multiples of ours: above 1, ours is faster. `make bench` measures again.",
        f"![What curvature costs, in passes over the data]({Path(PLOT).name})",
        "*Costs in multiples of one forward and backward pass of the same model and batch: ours and everybody else.*",
    ]
    for name, result in comparisons().items():
        machine = result["machine_info"]
        device = machine.get("gpu") or f"{machine['cpu']['brand_raw']}, {machine['cpu']['count']} cores"
        rows = []
        for entry in result["benchmarks"]:
            multiple = entry["extra_info"].get("multiples", {}).get(OURS)
            passes = f"{multiple:.2f}" if multiple else ""
            ours = entry["extra_info"].get("seconds", {}).get(OURS)
            others = competitors(entry)
            if ours and others:
                rows.append([f"`{entry['name']}`", f"{1e3 * ours:,.1f}", passes, others])
        if rows:
            torch = machine.get("torch", "")
            parts += [
                f"## {name}",
                f"{device}; torch {torch}; `benchmarks/results/{name}.json`",
                markdown(["benchmark", "ours, ms", "in passes", "others / ours"], rows),
            ]
    return "\n\n".join(parts) + "\n"


def plot(file: Path) -> None:
    """Ours and everybody else, in passes over the data, one row for each benchmark."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "unlearnx"
    from matplotlib import pyplot

    rows = {}
    for result in comparisons().values():
        for entry in result["benchmarks"]:
            multiples = entry["extra_info"].get("multiples")
            if multiples and len(multiples.keys() - {OURS, UNIT}) > 1:
                rows[entry["name"].removeprefix("test_")] = multiples
    rows = dict(sorted(rows.items()))
    figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(rows) + 1), layout="constrained")
    for y, multiples in enumerate(rows.values()):
        others = [m for name, m in multiples.items() if name not in (OURS, UNIT) and not name.startswith(OURS)]
        axes.plot(others, [y] * len(others), "o", color="0.6", ms=5, label=None if y else "everybody else")
        axes.plot(multiples[OURS], y, "D", color="C0", ms=6, label=None if y else OURS)
    axes.axvline(1, color="0.8", zorder=0)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("forward and backward passes")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a table differs")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    wanted = {readme: with_tables(readme.read_text()), ROOT / PAGE: page()}
    stale = [file for file, text in wanted.items() if not file.is_file() or file.read_text() != text]
    if check:
        for file in stale:
            print(f"{file.relative_to(ROOT)}: differs from benchmarks/results; run python benchmarks/report.py")
        sys.exit(bool(stale))
    for file in stale:
        file.write_text(wanted[file])
    plot(ROOT / PLOT)


if __name__ == "__main__":
    main()
