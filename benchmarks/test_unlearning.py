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


def repaired(benchmark, study, seeds, folder):
    """Medians of every measure of every method."""
    result = benchmark.pedantic(lambda: study.run(seeds, folder), rounds=1)
    benchmark.extra_info.update(result["summary"])
    print()
    for name, s in result["summary"].items():
        print(f"{name:28s} {100 * s['restored']:6.1f} % restored, {s['speedup']:6.1f}x faster than retraining")
    return result["summary"]


@pytest.mark.benchmark(group="unlearning")
def test_poison_digits(benchmark, tmp_path):
    found = repaired(benchmark, poison_digits(progress=False), [0, 1, 2], tmp_path)
    assert [s for s in found.values() if s["restored"] >= 0.8 and s["speedup"] >= 20], found


@pytest.mark.benchmark(group="unlearning")
def test_poison_cifar(benchmark, cifar, tmp_path):
    folder, sizes = cifar
    found = repaired(benchmark, poison_cifar(folder, progress=False, **sizes), [0], tmp_path)
    assert max(s["restored"] for s in found.values()) > 0.3, found


def compared(benchmark, study, folder, seeds=(0, 1, 2)):
    """Means of every measure of every model over the seeds, and the seconds of the whole comparison."""
    start = time.perf_counter()
    result = benchmark.pedantic(lambda: study.run(list(seeds), folder), rounds=1)
    seconds = time.perf_counter() - start
    means = {name: {key: e["mean"] for key, e in row.items()} for name, row in result["summary"].items()}
    benchmark.extra_info.update(means)
    print(f"\n{len(result['methods'])} methods, seeds {', '.join(map(str, seeds))}, {seconds:.0f} s")
    for name, m in sorted(means.items(), key=lambda item: item[1]["gap"]):
        print(
            f"{name:20s} gap {100 * m['gap']:6.2f} %, forget {100 * m['forget_accuracy']:6.2f} %, "
            f"test {100 * m['test_accuracy']:6.2f} %, {1 / m['runtime_ratio']:6.1f}x faster than retraining"
        )
    return means, seconds


@pytest.mark.benchmark(group="unlearning")
def test_forget_class_digits(benchmark, tmp_path):
    means, seconds = compared(benchmark, forget_class_digits(progress=False), tmp_path)
    assert seconds < 300
    for name in ("ssd", "fisher-masking"):
        for part, points in (("forget", 0.03), ("retain", 0.01)):
            assert means[name][f"{part}_accuracy"] == pytest.approx(
                means["retrained"][f"{part}_accuracy"], abs=points
            ), name
        assert means[name]["runtime_ratio"] <= 1 / 20, name


@pytest.mark.benchmark(group="unlearning")
def test_forget_random_digits(benchmark, tmp_path):
    means, _ = compared(benchmark, forget_random_digits(progress=False), tmp_path)
    assert min(m["gap"] for name, m in means.items() if name not in ("original", "retrained")) <= 0.015


@pytest.mark.benchmark(group="unlearning")
@pytest.mark.parametrize("study", [forget_class_cifar, forget_random_cifar], ids=["class", "random"])
def test_forget_cifar(benchmark, cifar, study, tmp_path):
    folder, sizes = cifar
    means, _ = compared(benchmark, study(folder, progress=False, **sizes), tmp_path, seeds=(0,))
    assert (
        min(m["gap"] for name, m in means.items() if name not in ("original", "retrained")) < means["original"]["gap"]
    )
