"""Every method against retraining: what it does and how much faster it is.

On the embedded digits, and on CIFAR-10 where its folder is given:
``pytest -s benchmarks/test_unlearning.py --cifar FOLDER --cifar-images 6000 --cifar-epochs 8``.
"""

import time

import pytest

from unlearnx.experiments import (
    forget_class_cifar,
    forget_class_digits,
    forget_random_cifar,
    forget_random_digits,
    poison_cifar,
    poison_digits,
)

SHOWN = ("gap", "forget_accuracy", "test_accuracy")


def repaired(benchmark, study, seeds, folder):
    """Medians of every measure of every method."""
    result = benchmark.pedantic(lambda: study.run(seeds, folder), rounds=1)
    benchmark.extra_info.update(result["summary"])
    return result["summary"]


@pytest.mark.benchmark(group="unlearning")
def test_poison_digits(benchmark, claim, tmp_path):
    found = repaired(benchmark, poison_digits(progress=False), [0, 1, 2], tmp_path)
    claim(
        any(s["restored"] >= 0.8 and s["speedup"] >= 20 for s in found.values()),
        "a method restores 80 % of the lost accuracy in a twentieth of the time of retraining",
    )


@pytest.mark.benchmark(group="unlearning")
def test_poison_cifar(benchmark, claim, cifar, tmp_path):
    folder, sizes = cifar
    found = repaired(benchmark, poison_cifar(folder, progress=False, **sizes), [0], tmp_path)
    claim(max(s["restored"] for s in found.values()) > 0.3, "a method restores 30 % of the lost accuracy")


def best_gap(means):
    """Of all methods."""
    return min(m["gap"] for name, m in means.items() if name not in ("original", "retrained"))


def compared(benchmark, study, folder, seeds=(0, 1, 2)):
    """Means of every measure of every model over the seeds, and the seconds of the whole comparison."""
    start = time.perf_counter()
    result = benchmark.pedantic(lambda: study.run(list(seeds), folder), rounds=1)
    seconds = time.perf_counter() - start
    means = {name: {key: e["mean"] for key, e in row.items()} for name, row in result["summary"].items()}
    benchmark.extra_info.update(means)
    benchmark.extra_info["table"] = {
        "title": f"{study.name}: {len(result['methods'])} methods on seeds {', '.join(map(str, seeds))} in "
        f"{seconds:.0f} s. Means over the seeds, in %; faster: than retraining.",
        "head": ["model", "gap", "forget", "test", "faster"],
        "rows": [
            [name, *(f"{100 * m[key]:.2f}" for key in SHOWN), f"{1 / m['runtime_ratio']:.1f}x"]
            for name, m in sorted(means.items(), key=lambda item: item[1]["gap"])
        ],
    }
    return means, seconds


@pytest.mark.benchmark(group="unlearning")
def test_forget_class_digits(benchmark, claim, tmp_path):
    means, seconds = compared(benchmark, forget_class_digits(progress=False), tmp_path)
    claim(seconds < 300, "all methods on three seeds take under five minutes")
    for name in ("ssd", "fisher-masking"):
        for part, points in (("forget", 3), ("retain", 1)):
            distance = abs(means[name][f"{part}_accuracy"] - means["retrained"][f"{part}_accuracy"])
            claim(100 * distance <= points, f"{name} comes within {points} % of retraining on the {part} set")
        claim(means[name]["runtime_ratio"] <= 1 / 20, f"{name} takes a twentieth of the time of retraining or less")


@pytest.mark.benchmark(group="unlearning")
def test_forget_random_digits(benchmark, claim, tmp_path):
    means, _ = compared(benchmark, forget_random_digits(progress=False), tmp_path)
    claim(best_gap(means) <= 0.015, "a method comes within 1.5 % of retraining")


@pytest.mark.benchmark(group="unlearning")
@pytest.mark.parametrize("study", [forget_class_cifar, forget_random_cifar], ids=["class", "random"])
def test_forget_cifar(benchmark, claim, cifar, study, tmp_path):
    folder, sizes = cifar
    means, _ = compared(benchmark, study(folder, progress=False, **sizes), tmp_path, seeds=(0,))
    claim(best_gap(means) < means["original"]["gap"], "a method is closer to retraining than the original model")
