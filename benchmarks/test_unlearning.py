"""Every method on the embedded digits, against retraining: what it restores and how much faster it is."""

import pytest

from unlearnx.experiments import poison_digits


@pytest.mark.benchmark(group="unlearning")
def test_poison_digits(benchmark, tmp_path):
    study = poison_digits(progress=False)
    result = benchmark.pedantic(lambda: study.run([0, 1, 2], tmp_path), rounds=1)
    benchmark.extra_info.update(result["summary"])
    print()
    for name, s in result["summary"].items():
        print(f"{name:28s} {100 * s['restored']:6.1f} % restored, {s['speedup']:6.1f}x faster than retraining")
    good = [s for s in result["summary"].values() if s["restored"] >= 0.8 and s["speedup"] >= 20]
    assert good, result["summary"]
