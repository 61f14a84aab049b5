"""Tables and the plot of the committed results, for README.md and the pages under docs.

    python -m benchmarks.report             writes them anew from benchmarks/results
    python -m benchmarks.report --check     writes nothing, and exits with 1 where a page says something else

A page takes a table between ``<!-- results: NAME -->`` and ``<!-- end -->``; NAME is one of TABLES below, or that of a
file of pytest-benchmark's results, such as ``ops-cpu``. docs/benchmarks.svg shows costs in passes over the data.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from math import log2
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.u_lira import RETRAINED, UNTOUCHED
from benchmarks.untuned.rows import rows_of
from benchmarks.untuned.study import summary
from unlearnx.experiments.forget.published import published
from unlearnx.experiments.report.table_columns import speedup

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "benchmarks.svg"
OURS = "ours"
NBSP = "\N{NO-BREAK SPACE}"
UNIT = "forward+backward"  # what the multiples of the results are of
GIVEN = ("held-out data", "nothing")  # to metrics.unseen_level
PLACE = re.compile(r"(<!-- results: (\S+) -->)\n.*?(<!-- end -->)", flags=re.DOTALL)


def read(name: str) -> dict[str, Any]:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def means(result: dict[str, Any], model: str) -> dict[str, float]:
    """Of every measure of a model, over the seeds of a study."""
    return {key: entry["mean"] for key, entry in result["summary"][model].items()}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""

    def line(cells: list[str]) -> str:
        return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"

    return "\n".join([line(head), f"|{'---|' * len(head)}", *map(line, rows)])


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}{NBSP}%"


def ranged(value: float, low: float, high: float) -> str:
    """A value with its interval or range."""
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


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
    "stochastic-teacher": "`StochasticTeacher(epochs=2)`",
    "ssd": '`SSD(alpha="adaptive")`',
    "gradient-ascent": "`GradientAscent(epochs=5)`",
    "fisher-masking": "`FisherMasking(0.005)`, with `FineTune` for the tenth",
    "salun": "`SalUn(epochs=3)`",
    "random-perturbation": "`RandomPerturbation(0.5)` and `FineTune(epochs=4)`",
    "bad-teacher": "`BadTeacher(epochs=2)`",
    "neg-grad": "`NegGrad(epochs=2)`",
    "scrub": "`SCRUB(epochs=4)`",
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
    "ssd": '`SSD(alpha="adaptive")`',
    "fine-tune-anchored": "`FineTune(epochs=2, anchor=1e-2)`",
    "fine-tune": "`FineTune(epochs=2)`",
    "retrained": "retrained",
}


def forget_cifar() -> str:
    """A class of CIFAR-10 forgotten."""
    result = read("forget-class-cifar")
    rows = []
    for name, label in FORGET_CIFAR.items():
        s = means(result, name)
        accuracies = [percent(s[f"{part}_accuracy"]) for part in ("forget", "test", "test_forgotten")]
        spent = "" if name == "original" else f"{s['seconds']:.0f}"
        faster = f"{speedup(result, name):.1f}x" if name in result["methods"] else ""
        rows.append([label, *accuracies, f"{100 * s['gap']:.2f}", spent, faster])
    forgotten = result["request"]["class_name"]
    head = ["model", "forget", "test, the other nine", f"test, {forgotten}", "gap, %", "seconds", "faster"]
    return markdown(head, rows)


FORGET_TENTH = {
    "random-labels": "`RandomLabels(epochs=1, lr=5e-4)`",
    "salun": "`SalUn(epochs=1, lr=5e-4)`",
    "fine-tune": "`FineTune(epochs=1, lr=2e-3)`",
    "l1-sparse": "`L1Sparse(epochs=1, lr=2e-3)`",
    "gradient-ascent": "`GradientAscent(epochs=1, lr=1e-5)`",
    "influence": "`WoodFisher()`",
    "original": "untouched",
    "retrained": "retrained",
}


def forget_tenth() -> str:
    """A random tenth of CIFAR-10 forgotten by a ResNet-9, beside what is published of a larger network."""
    result = read("forget-random-cifar10")
    theirs = published("random", "cifar10", 0.1)[0]["rows"]
    rows = []
    for name, label in FORGET_TENTH.items():
        s = means(result, name)
        found = [percent(s[f"{part}_accuracy"]) for part in ("forget", "retain", "test")]
        gap = theirs[name]["gap"] if name in theirs else None
        spent = percent(s["gradient_ratio"], 1) if name in result["methods"] else ""
        cells = [f"{100 * s['gap']:.2f}", *found, percent(s["mia_salun"]), spent]
        rows.append([label, *cells, "" if gap is None else f"{100 * gap:.2f}"])
    head = ["method", "gap, points", "forget", "retain", "test", "attack", "gradients of retraining"]
    return markdown([*head, "published gap"], rows)


REPAIR = {
    "fine-tuning": "`FineTune(epochs=5, lr=5e-3, weight_decay=1)` without them",
    "relabelling": "the same, with the labels that the other networks propose",
    "EWC repair, fine-tuning": "`EWCRepair(epochs=10)`, then the same",
    "Newton repair": '`NewtonRepair(params="last:4")`',
    "EWC repair, energy alignment": "`EWCRepair(epochs=10)`, then `EnergyAlignment(epochs=2)`",
    "EWC repair": "`EWCRepair(epochs=10)`",
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


def canary() -> str:
    """A number that a language model learned by heart, forgotten."""
    result = read("canary-alice")
    runs = len(result["runs"])
    labels = {
        "before": "trained with the number",
        "first order": "`FirstOrder`",
        "second order": "`SecondOrder` with `ConjugateGradient(iterations=11)`",
        "fine-tuning": "`FineTune`",
        "retrained": "retrained without the number",
    }
    rows = []
    for name, label in labels.items():
        s = result["summary"][name]
        bits = [f"{exposure_bits(s):.1f}", f"{s['log_perplexity']:.{0 if s['log_perplexity'] > 10 else 1}f}"]
        seconds = f"{s['seconds']:.{0 if s['seconds'] > 10 else 1}f}" if s["seconds"] else ""
        faster = times(s["speedup"]) if name in result["methods"] else ""
        rows.append([label, *bits, f"{s['contains']} of {runs}", percent(s["accuracy"], 1), seconds, faster])
    head = ["model", "exposure, bits", "log-perplexity of the number, bits", "models that write it"]
    return markdown([*head, "training accuracy", "seconds", "faster than retraining"], rows)


def canary_lm() -> str:
    """A number that a pretrained language model learned by heart, forgotten, and what of it comes back."""
    result = read("canary-lm")
    runs = len(result["runs"])
    space = result["canary"]["length"] * log2(10)  # no number has more: an estimate may say so of one known by heart
    bits = ("exposure", "rounded_8", "rounded_4", "paraphrased", "relearned")
    rows = []
    for name, s in result["summary"].items():
        label = {"before": "trained with the number", "retrained": "retrained without the number"}.get(name, name)
        cells = [f"{s['contains']} of {runs}", *(f"{min(s[key], space):.1f}" for key in bits)]
        cells += [f"{s[f'{part}_perplexity']:.1f}" for part in ("learned", "unseen")]
        seconds = f"{s['seconds']:.0f}" if s["seconds"] else ""
        rows.append([label, *cells, seconds, times(s["speedup"]) if name in result["methods"] else ""])
    head = ["model", "models that write it", "exposure, bits", "8-bit weights", "4-bit weights", "in other words"]
    head += ["second half relearned", "perplexity, learned", "unseen", "seconds", "faster than retraining"]
    return f"*{processor(result)}, threads: {threads(result)}.*\n\n{markdown(head, rows)}"


def tofu() -> str:
    """Fictitious authors that a language model forgets, and what of them comes back."""
    result = read("tofu")
    measures = {
        "forget_quality": ("forget quality", ".2g"),
        "utility": ("utility", ".3f"),
        "forget_truth_ratio": ("truth ratio", ".2f"),
        "forget_probability": ("probability", ".2f"),
        "forget_rouge": ("ROUGE-L", ".2f"),
        "mia_min_k": ("attack, Min-K%", ".2f"),
        "paraphrased_probability": ("in other words", ".2f"),
        "rounded_4": ("4-bit weights", ".2f"),
        "relearned_10": ("10 texts relearned", ".2f"),
        "seconds": ("seconds", ".0f"),
    }
    rows = []
    for name, s in result["summary"].items():
        label = f"`{name}`, {strength}" if (strength := chosen_strength(result, name)) else name
        rows.append([label, *(f"{s[key]:{form}}" for key, (_, form) in measures.items())])
    table = markdown(["model", *(title for title, _ in measures.values())], rows)
    return f"*{processor(result)}, threads: {threads(result)}.*\n\n{table}"


def chosen_strength(result: dict[str, Any], method: str) -> str:
    """The strength of a method that was found on other authors; nothing for a model that none made."""
    found = result["chosen"].get(method)
    return f"{found['strength']} = {found['value']:g}" if found else ""


def threads(result: dict[str, Any]) -> int:
    """How many threads a study ran on."""
    return int(result["environment"]["unlearnx"]["threads"])


def exposure_bits(summary: dict[str, Any]) -> float:
    """The exposure as estimated, or its lower bound where no sample is near the number and the bound says more."""
    return max(summary["exposure"], summary["lower_bound"])


def headline() -> str:
    """The studies in a line each, every method beside the retrained model of the same run."""
    names = ("poison-cifar-default", "forget-class-cifar", "forget-class-digits", "canary-alice", "features-drebin")
    poison, cifar, digits, planted, drebin = map(read, names)
    labels, run = poison["summary"]["fine-tuning, last block"], poison["runs"][0]
    accuracies = run["poisoned"]["accuracy"], labels["accuracy"], run["clean"]["accuracy"]
    rows = [
        [
            "10,000 wrong labels of CIFAR-10 put right: test accuracy",
            *(percent(accuracy, 1) for accuracy in accuracies),
            times(labels["speedup"]),
            "`FineTune`, last block",
        ]
    ]
    for what, result in (("a class of CIFAR-10", cifar), ("a class of the digits", digits)):
        gaps = [result["summary"][name]["gap"]["mean"] for name in ("original", "second-order", "retrained")]
        faster = times(speedup(result, "second-order") or 0)
        rows.append([f"{what} removed: gap", *map(percent, gaps), faster, "`SecondOrder`, last layer"])
    s = planted["summary"]
    bits = [f"{exposure_bits(s[name]):.1f}{NBSP}bits" for name in ("before", "second order", "retrained")]
    faster = times(s["second order"]["speedup"])
    rows.append(["a number removed from a language model: exposure", *bits, faster, "`SecondOrder`"])
    s = drebin["summary"][str(drebin["counts"][-1])]
    residuals = [f"{s[name]['residual']:.2g}" for name in ("before", "second order, 2 steps", "retrained")]
    faster = times(s["second order, 2 steps"]["speedup"])
    rows.append(
        ["100 features removed from a linear classifier: gradient residual", *residuals, faster, "`CertifiedRemoval`"]
    )
    machines = dict.fromkeys(processor(result) for result in (poison, cifar, digits, planted, drebin))
    table = markdown(["what, and how it is measured", "before", "after", "retrained", "faster", "method"], rows)
    return f"{table}\n\n*Measured on: {'; '.join(machines)}. torch {poison['environment']['torch'].split('+')[0]}.*"


LEVELS = {"x86-64-v3": "x86-64 with AVX2", "x86-64-v4": "x86-64 with AVX-512"}


def processor(result: dict[str, Any]) -> str:
    """What a study ran on, as far as its results tell."""
    environment = result["environment"]
    level = environment["unlearnx"]["cpu_level"]
    return environment.get("processor") or f"{environment['device']} ({LEVELS.get(level, level)})"


def comparisons() -> dict[str, dict[str, Any]]:
    """The committed results of pytest-benchmark that hold comparisons, by the names of their files."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    return {name: r for name, r in found.items() if any(map(compared, r.get("benchmarks", [])))}


def compared(entry: dict[str, Any]) -> bool:
    """Whether a benchmark has seconds of ours and of somebody else."""
    return OURS in entry["extra_info"].get("seconds", {}) and bool(competitors(entry))


def competitors(entry: dict[str, Any]) -> str:
    """How many times as long everybody else takes, the fastest first."""
    ratios = entry["extra_info"].get("ratios", {})
    others = {name: ratio for name, ratio in ratios.items() if name != UNIT}
    return "; ".join(f"{name} **{r:.2f}**" for name, r in sorted(others.items(), key=lambda item: item[1]))


def comparison(result: dict[str, Any]) -> str:
    """Every row of a file of results, and what it was measured on."""
    machine = result["machine_info"]
    device = machine.get("gpu") or f"{machine['cpu']['brand_raw']}, {machine['cpu']['count']} cores"
    entries = list(filter(compared, result["benchmarks"]))
    in_passes = any("multiples" in entry["extra_info"] for entry in entries)
    rows = []
    for entry in entries:
        info = entry["extra_info"]
        cost = [number(info["multiples"][OURS] if "multiples" in info else None)] if in_passes else []
        rows.append([f"`{entry['name']}`", f"{1e3 * info['seconds'][OURS]:,.1f}", *cost, competitors(entry)])
    head = ["benchmark", "ours, ms", *(["in passes"] if in_passes else []), "others / ours"]
    return f"*{device}; torch {machine.get('torch', '')}.*\n\n{markdown(head, rows)}"


def multiples(name: str) -> dict[str, dict[str, float]]:
    """Costs in forward and backward passes, by benchmark and competitor; each vector's where there are several."""
    entries = read(name)["benchmarks"]
    found = {e["name"]: e["extra_info"].get("each") or e["extra_info"].get("multiples", {}) for e in entries}
    return {name: costs for name, costs in found.items() if costs}


def least(costs: dict[str, float], names: Iterable[str]) -> tuple[str, float] | None:
    """The cheapest of some competitors."""
    found = [(name, costs[name]) for name in names if name in costs]
    return min(found, key=lambda item: item[1], default=None)


def number(value: float | None) -> str:
    """A cost in passes, with two digits after the point where they tell something."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


FISHER = {
    "VGG, batch 64": ("vgg-64", "vgg"),
    "VGG, batch 256": ("vgg-256", None),
    "character LSTM, batch 64": ("char-lstm-64", None),
    "character LSTM, batch 256": ("char-lstm-256", "char-lstm"),
    "ViT-tiny block, batch 64": ("vit-64", None),
    "ViT-tiny block, batch 256": ("vit-256", "vit"),
    "logistic regression, 3,000 features, batch 4,096": ("logistic-4096", "logistic"),
}


def fisher() -> str:
    """What a Fisher diagonal costs, in passes over the data."""
    costs = multiples("fisher-cpu")
    rows = []
    for label, (one, many) in FISHER.items():
        row = costs[f"test_fisher[cpu-{one}]"]
        among = costs[f"test_fisher_of_many_batches[cpu-{many}]"][OURS] if many else None
        vmap = least(row, (name for name in row if name.startswith("vmap")))
        others = sorted((row[n], n) for n in ("BackPACK", "nngeometry", "Opacus") if n in row)
        named = ", ".join(f"{name} {number(value)}" for value, name in others)
        alone = [number(row[OURS]), number(among), number(row["batch size 1"])]
        rows.append([label, *alone, number(vmap[1]) if vmap else "", named])
    head = ["", "ours, one call on one batch", "ours, a batch among eight", "batch size 1", "best `vmap(grad)`"]
    return markdown([*head, "other libraries"], rows)


LIBRARIES = ("curvlinops", "dattri", "dattri, rev-fwd", "pyDVL", "hessian-eigenthings", "BackPACK")
CURVATURE = {
    "curvature": {
        "VGG, batch 64, Hessian": "test_product[cpu-vgg-hessian]",
        "VGG, batch 64, Gauss-Newton": "test_product[cpu-vgg-ggn]",
        "VGG, 8 vectors at once, each, Hessian": "test_eight_products[cpu-vgg-hessian]",
        "VGG, 8 vectors at once, each, Gauss-Newton": "test_eight_products[cpu-vgg-ggn]",
        "last six tensors on features, batch 1,024, Hessian": "test_iteration_on_the_head[cpu-hessian]",
        "the same, Gauss-Newton": "test_iteration_on_the_head[cpu-ggn]",
        "ViT-tiny block, batch 64, Hessian": "test_product[cpu-vit-hessian]",
        "ViT-tiny block, batch 64, Gauss-Newton": "test_product[cpu-vit-ggn]",
    },
    "lstm": {
        "Hessian product": "test_product[cpu-char-lstm-hessian]",
        "Hessian, 8 vectors at once, each": "test_eight_products[cpu-char-lstm-hessian]",
        "Gauss-Newton product": "test_product[cpu-char-lstm-ggn]",
        "Gauss-Newton, 8 vectors at once, each": "test_eight_products[cpu-char-lstm-ggn]",
    },
}


def curvature(name: str) -> str:
    """What curvature products cost, in passes over the data."""
    costs = multiples(f"{name}-cpu")
    rows = []
    for label, benchmark in CURVATURE[name].items():
        row = costs[benchmark]
        kept = least(row, (n for n in row if n.startswith("kept graph")))
        fresh = least(row, LIBRARIES)
        again = least(row, (n for n in row if n.split(", kept")[0] in LIBRARIES and n.endswith("kept graph")))
        libraries = [f"{n.removesuffix(', kept graph')} {number(v)}" for n, v in filter(None, (fresh, again))]
        own = [number(row.get(n)) for n in (OURS, "ours, repeated", "double backward")]
        best = f"{libraries[0]} / {libraries[1]}" if fresh and again else " / ".join(libraries)
        rows.append([label, *own, number(kept[1]) if kept else "", best])
    head = ["", "ours", "ours, same batch again", "double backward", "the same, graph kept"]
    return markdown([*head, "best of the other libraries, fresh / kept"], rows)


def kronecker() -> str:
    """What fitting EK-FAC's factors costs, in passes over the data."""
    costs = multiples("kronecker-cpu")
    models = {"perceptron, 1,437 digits": "test_fit[cpu-digits]", "ResNet-9, 256 images": "test_fit[cpu-resnet9]"}
    ways = ("ours", "eigendecompositions", "curvlinops", "kronfluence", "dattri")
    rows = [[label, *(number(costs[name].get(way)) for way in ways)] for label, name in models.items()]
    return markdown(["", "ours", "eigendecompositions alone", *ways[2:]], rows)


def language_model() -> str:
    """What SmolLM2-135M costs, in passes over the batch."""
    costs = multiples("language-model-cpu")
    products = {"Gauss-Newton": "test_product[cpu-ggn-2.0-1.5]", "Hessian": "test_product[cpu-hessian-3.2-2.3]"}
    rows = [
        ["Fisher diagonal, all parameters", number(costs["test_fisher_of_all_parameters[cpu]"][OURS]), ""],
        ["Fisher diagonal, adapters of rank 8", number(costs["test_fisher_of_adapters[cpu]"][OURS]), ""],
    ]
    for label, name in products.items():
        rows.append([f"{label} product", *(number(costs[name][way]) for way in (OURS, "ours, repeated"))])
    return markdown(["", "ours", "same batch again"], rows)


def unseen_level() -> str:
    """Errors of the estimated accuracy, and how often its interval is right, for every cell and for all samples."""
    result = read("unseen-level")
    cells: dict[str, list[dict[str, Any]]] = {}
    for case in result["cases"]:
        cells.setdefault(case["what"], []).append(case)

    def told(cases: list[dict[str, Any]]) -> list[str]:
        levels = [(case["unseen"]["accuracy"], case["retrained"]["accuracy"]) for case in cases]
        error = mean(abs(level["estimate"] - true) for level, true in levels)
        right = sum(level["low"] - 1e-9 <= true <= level["high"] + 1e-9 for level, true in levels)
        return [f"{100 * error:.1f}", f"{right} of {len(levels)}"]

    def row(what: str, cases: list[dict[str, Any]], *between: str) -> list[str]:
        return [what, *between, *(cell for given in GIVEN for cell in told([c for c in cases if c["given"] == given]))]

    rows = [
        row(what, cases, percent(mean(c["retrained"]["accuracy"] for c in cases), 1)) for what, cases in cells.items()
    ]
    kinds = {"all classes": lambda c: c["class"], "all samples": lambda c: not (c["class"] or c["hard"])}
    rows += [row(f"**{kind}**", [c for c in result["cases"] if belongs(c)], "") for kind, belongs in kinds.items()]
    given = ("with held-out data", "without")
    head = ["model, what is forgotten", "retrained", *(t for g in given for t in (f"error {g}", "interval right"))]
    return markdown(head, rows)


def untuned() -> str:
    """What every method does on every cell where nothing is tuned, as counts, and what `unlearnx.forget` does."""
    rows = []
    for own in untuned_cells():
        seeds = sorted({row["seed"] for row in own})
        auto = [row for row in own if row["method"] == "auto"]
        before, retrained = (mean(row[when]["forget"] for row in auto) for when in ("before", "retrained"))
        lost = mean(row["before"]["test"] - row["after"]["test"] for row in auto)
        methods = [[row for row in own if row["seed"] == seed and row["method"] != "auto"] for seed in seeds]
        count = [str(sum(row["near"] and row["kept"] for row in of_seed)) for of_seed in methods]
        after, speedup = (
            mean(row["after"]["forget"] for row in auto),
            median(row["retraining_seconds"] / row["seconds"] for row in auto),
        )
        rows.append(
            [
                *(own[0]["what"], percent(before, 1), percent(retrained, 1), percent(after, 1)),
                *(f"{100 * lost:+.1f}", f"{speedup:.1f}x", f"{', '.join(count)} of {len(methods[0])}"),
            ]
        )
    head = ["model, what is forgotten", "before", "retrained", "`forget`", "test accuracy lost", "time", "methods near"]
    return markdown(head, rows)


def untuned_methods() -> str:
    """For every method, on how many cells it comes near to retraining at little cost, and what its verdicts say."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in untuned_rows():
        by_method.setdefault(row["method"], []).append(row)

    def near(own: list[dict[str, Any]], is_class: bool) -> str:
        chosen = [row for row in own if row["is_class"] == is_class]
        return f"{sum(row['near'] and row['kept'] for row in chosen)} of {len(chosen)}"

    rows = [
        [
            *(f"`{name}`", near(own, True), near(own, False)),
            *(str(sum(row.get("forgotten") == "yes" for row in own)), str(sum(row["wrong"] for row in own))),
        ]
        for name, own in by_method.items()
    ]
    return markdown(["method", "classes", "samples", 'verdicts "yes"', "wrong ones"], rows)


def untuned_verdicts() -> str:
    """Verdicts against the distance to the retrained model's accuracy on the forget set."""
    found = summary(untuned_rows())["verdicts"]
    distances = ("within 5 points", "5 to 10", "more than 10")
    rows = [
        [f'"{name}"', *(str(found[name].get(d, 0)) for d in distances)] for name in ("yes", "partly", "unknown", "no")
    ]
    return markdown(["verdict", *distances], rows)


def strength_cost() -> str:
    """Seconds of methods that find their strength over those with it given, by cell; - where it was not comparable."""
    rows = read("strength-cost")["rows"]
    cells, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("what", "method"))
    times = {(row["what"], row["method"]): row.get("times") for row in rows}

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    body = [[f"`{name}`", *(shown(times.get((cell, name))) for cell in cells)] for name in names]
    return markdown(["method", *cells], [row for row in body if set(row[1:]) != {"-"}])


def untuned_cifar() -> str:
    """What `unlearnx.forget` does on networks of CIFAR-10 with nothing tuned; single runs."""
    rows = [
        [
            row["what"] + (", held-out data given" if row["method"] == "auto-held-out" else ""),
            *(percent(row[when]["forget"], 1) for when in ("before", "retrained", "after")),
            *(percent(row[when]["test"], 1) for when in ("before", "after")),
            *(f'"{row["forgotten"]}"', *(f"{row[name]:,.0f} s" for name in ("seconds", "retraining_seconds"))),
        ]
        for row in rows_of(read("untuned-cifar"))
    ]
    head = ["model, what is forgotten", "before", "retrained", "`forget`", "test before", "after", "verdict"]
    return markdown([*head, "seconds", "of retraining"], rows)


def untuned_rows() -> list[dict[str, Any]]:
    """What methods do where nothing is tuned: twenty of them, and ten that were measured later on another processor."""
    return rows_of(read("untuned")) + rows_of(read("untuned-newer"))


def untuned_cells() -> list[list[dict[str, Any]]]:
    """The rows of each cell."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(read("untuned")):
        cells.setdefault(row["cell"], []).append(row)
    return list(cells.values())


SOLVER_MEASURES = {
    "poison-cifar": {"restored": "lost accuracy restored", "test_accuracy": "test accuracy"},
    "forget-class-digits": {"gap": "gap", "forget_accuracy": "forget", "test_accuracy": "test"},
    "canary-alice": {"exposure": "exposure, bits", "accuracy": "training accuracy"},
}
SOLVER_COSTS = {"residual": ".2g", "products": ".0f", "seconds": ".1f"}


def solvers(study: str) -> str:
    """The same direction found in several ways: what is forgotten, how well the system is solved, and what it costs."""
    measures = SOLVER_MEASURES[study]
    rows = []
    for way, found in read("solvers")["summary"][study].items():
        bits = {"exposure": f"{exposure_bits(found):.1f}"} if "exposure" in measures else {}
        cells = [bits.get(key) or percent(found[key]) for key in measures]
        cost = [f"{found[key]:{form}}" if key in found else "" for key, form in SOLVER_COSTS.items()]
        rows.append([way, *cells, *cost])
    return markdown(["", *measures.values(), "residual", "products", "seconds"], rows)


def datamodelling() -> str:
    """How well scores of training samples predict what training on parts of the data does, and find wrong labels."""
    studies = read("lds")["studies"]
    ways = list(dict.fromkeys(way for one in studies for way in (*one["lds"], *one["auroc"])))

    def cells(one: dict[str, Any], way: str) -> list[str]:
        forms = {"lds": ".2f", "auroc": ".3f", "seconds": ".1f"}
        return [f"{one[key][way]:{form}}" if way in one[key] else "" for key, form in forms.items()]

    rows = [[way, *(cell for one in studies for cell in cells(one, way))] for way in ways]
    head = [f"{one['data']}: {title}" for one in studies for title in ("LDS", "AUROC", "seconds")]
    return markdown(["scores", *head], rows)


def u_lira() -> str:
    """What attackers find of what each method was to remove: who know a sample, and who see outputs alone."""
    rows = sorted(read("u-lira")["rows"].items(), key=lambda entry: entry[1]["u_lira"]["mean"])
    attacks = ("u_lira", "population")
    body = [
        [
            name if name in (UNTOUCHED, RETRAINED) else f"`{name}`",
            *(ranged(*(row[attack][key] for key in ("mean", "low", "high"))) for attack in attacks),
        ]
        for name, row in rows
    ]
    return markdown(["model", "U-LiRA", "population attack"], body)


def stable_abi() -> str:
    """What calls of the ops cost before and after they moved to torch's stable ABI."""
    result = read("stable-abi")
    rows = []
    for row in result["rows"]:
        ordinary, small = row["ordinary"], row["small"]
        cells = [f"{1e3 * ordinary['before']:.3g}", ranged(ordinary["ratio"], *ordinary["range"])]
        rows.append(
            [f"`{row['row']}`", row["sizes"], *cells, *(f"{1e6 * small[side]:.0f}" for side in ("before", "after"))]
        )
    head = ["op", "an ordinary call", "before, ms", "after / before", "a small call before, µs", "after, µs"]
    threads = result["builds"]["after"]["threads"]
    machine = f"{processor(result)}, threads: {threads}; torch {result['environment']['torch']}"
    return f"*{machine}.*\n\n{markdown(head, rows)}"


TABLES: dict[str, Callable[[], str]] = {
    "stable-abi": stable_abi,
    "headline": headline,
    "poison-cifar": poison_cifar,
    "forget-digits": forget_digits,
    "forget-cifar": forget_cifar,
    "forget-tenth": forget_tenth,
    "repair-mnist": repair,
    "features-drebin": features,
    "canary-alice": canary,
    "canary-lm": canary_lm,
    "tofu": tofu,
    "fisher": fisher,
    "curvature": lambda: curvature("curvature"),
    "kronecker": kronecker,
    "language-model": language_model,
    "lstm": lambda: curvature("lstm"),
    "unseen-level": unseen_level,
    "lds": datamodelling,
    "untuned": untuned,
    "untuned-methods": untuned_methods,
    "untuned-verdicts": untuned_verdicts,
    "untuned-cifar": untuned_cifar,
    "strength-cost": strength_cost,
    "u-lira": u_lira,
}


def pages() -> dict[Path, str]:
    """The texts that may hold tables."""
    return {file: file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}


def with_tables(texts: dict[Path, str]) -> dict[Path, str]:
    """The pages with their tables made anew.

    Raises:
        ValueError: a page names a table that there is none of, or a table has no place.
    """
    made = {name: make() for name, make in TABLES.items()}
    made |= {f"solvers-{study}": solvers(study) for study in read("solvers")["summary"]}
    made |= {name: comparison(result) for name, result in comparisons().items()}
    named = {match[2] for text in texts.values() for match in PLACE.finditer(text)}
    if named != made.keys():
        raise ValueError(
            f"README.md and docs have no <!-- results: NAME --> for {sorted(made.keys() - named) or 'none'}, and "
            f"name {sorted(named - made.keys()) or 'nothing'} that benchmarks/report.py does not make"
        )
    return {file: PLACE.sub(lambda m: f"{m[1]}\n{made[m[2]]}\n{m[3]}", text) for file, text in texts.items()}


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
    before = pages()
    stale = {file: text for file, text in with_tables(before).items() if text != before[file]}
    if check:
        for file in stale:
            print(f"{file.relative_to(ROOT)}: differs from benchmarks/results; run python -m benchmarks.report")
        sys.exit(bool(stale))
    for file, text in stale.items():
        file.write_text(text)
    plot(PLOT)


if __name__ == "__main__":
    main()
