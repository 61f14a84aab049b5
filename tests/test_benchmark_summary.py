"""What `pytest benchmarks` prints, and when it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import summary
from benchmarks.comparison import Claims, Comparison

ROOT = Path(__file__).parents[1]


class Benchmark:
    """What comparisons need of pytest-benchmark's fixture."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, run, rounds):
        for _ in range(rounds):
            run()


def entry(name="test_sum[cpu-vgg-64]", group="op", **info):
    return {"name": name, "group": group, "extra_info": info}


def compared(**info):
    values = dict(
        seconds={"ours": 0.02, "a": 0.03, "b": 0.01, "triad": 0.02},
        ratios={"a": 1.5, "b": 0.5, "triad": 1.0},
        spread={"a": [1.4, 1.6], "b": [0.4, 0.6], "triad": [0.9, 1.1]},
    )
    return entry(**{**values, **info})


@pytest.mark.parametrize(
    ("name", "group", "expected"),
    [
        ("test_ssd_dampen[cpu]", "ssd_dampen_", "ssd_dampen_"),
        ("test_fisher[cpu-vgg-64]", "fisher_diagonal", "fisher_diagonal: vgg 64"),
        ("test_many_small_tensors[cuda]", "ssd_dampen_", "ssd_dampen_: many small tensors"),
        ("test_streams", None, "streams"),
    ],
)
def test_titles(name, group, expected):
    assert summary.title(entry(name, group)) == expected


def test_a_faster_rival_is_a_row_that_says_so():
    lines = summary.rival_lines([compared()], {("test_sum[cpu-vgg-64]", "a"): 1.25})
    rows = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert rows["b"].split()[1] == "0.50x"
    assert rows["b"].endswith("rival")
    assert rows["a"].endswith("ours")
    assert "1.25x" in rows["a"]
    assert rows["triad"].endswith("yardstick")
    assert list(rows) == ["rival", "b", "a", "triad"]


def test_rounds_that_disagree_are_a_tie():
    assert summary.verdict("a", 0.9, 1.2) == "equal"


def test_passes_stand_in_the_heading():
    lines = summary.comparison_lines(
        compared(ratios={"forward+backward": 2.0}, spread={"forward+backward": [2, 2]}), {}
    )
    assert lines == ["op: sum vgg 64: 20 ms, 0.50 forward and backward passes"]


def test_unmet_claims_are_listed():
    claims = [{"text": "faster than a", "met": True}, {"text": "faster than b", "met": False}]
    lines = summary.claim_lines([entry(claims=claims)])
    assert lines == ["", "Claims met: 1 of 2. Not met here:", "  op: sum vgg 64: faster than b"]


def test_missing_rows_and_what_brings_them():
    refused = {"Opacus": "ModuleNotFoundError: no", "dattri, kept": "ModuleNotFoundError: no", "b": "ValueError: no"}
    text = "\n".join(summary.missing_lines([entry(refused=refused)], {"needs CIFAR-10": ["poison_cifar"]}, 7))
    assert "Opacus, for op: sum vgg 64" in text
    assert "dattri, for op" in text
    assert "ValueError" not in text
    assert summary.INSTALL_RIVALS in text
    assert "Not run: needs CIFAR-10" in text
    assert "7 more: pytest benchmarks --all" in text


def test_the_line_that_brings_rivals_works():
    """The file that it names is there, and pinned throughout."""
    file = ROOT / summary.INSTALL_RIVALS.split()[-1]
    pins = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in pins)
    assert not {line.partition("==")[0] for line in pins} & {"torch", "torchvision", "numpy"}


def test_fits_a_terminal():
    table = {"title": "word " * 40, "head": ["model", "seconds"], "rows": [["a", "1.00"], ["retrained", "10.00"]]}
    entries = [compared(), entry(table=table), entry(claims=[{"text": "word " * 30, "met": False}])]
    lines = summary.report(entries, {}, {"needs something " * 9: ["x"] * 40}, 3)
    assert max(map(len, lines)) <= summary.WIDTH


def test_committed_results_are_found():
    known = summary.committed()
    assert known["test_fisher[cpu-vgg-64]", "batch size 1"] > 1


def test_competitors_take_turns():
    calls = []
    benchmark = Benchmark()
    comparison = Comparison(benchmark, Claims(benchmark, strict=False), "cpu", quick=False)
    comparison.run(lambda: calls.append("ours"), {"b": lambda: calls.append("b")}, rounds=3, warmups=1)
    assert calls[:8] == ["ours", "b"] * 4
    info = benchmark.extra_info
    assert info["ratios"].keys() == info["spread"].keys() == {"b"}


def test_calls_count_so_often(monkeypatch):
    monkeypatch.setattr("benchmarks.comparison._seconds", lambda run, device: 1.0)
    benchmark = Benchmark()
    comparison = Comparison(benchmark, Claims(benchmark, strict=False), "cpu", quick=True)
    assert comparison.run(lambda: None, {"b": lambda: None}, calls={"b": 8}) == {"b": 8.0}


@pytest.mark.parametrize(("device", "claims"), [("cpu", 1), ("cuda", 0)])
def test_claims_are_those_of_the_cpu(device, claims, monkeypatch):
    """On a GPU ratios are reported, and nothing is claimed that was measured elsewhere."""
    monkeypatch.setattr("benchmarks.comparison._seconds", lambda run, device: 1.0)
    benchmark = Benchmark()
    comparison = Comparison(benchmark, Claims(benchmark, strict=False), device, quick=True)
    assert comparison.run(lambda: None, {"b": lambda: None}, claims={"b": 4}) == {"b": 1.0}
    assert len(benchmark.extra_info.get("claims", [])) == claims


def test_claims_fail_where_they_are_strict():
    benchmark = Benchmark()
    Claims(benchmark, strict=False)(False, "never")
    assert benchmark.extra_info["claims"] == [{"text": "never", "met": False}]
    with pytest.raises(pytest.fail.Exception, match="not met: never"):
        Claims(benchmark, strict=True)(False, "never")


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_exit_status(tmp_path, options, status):
    """One quick benchmark with a claim that cannot be met, beside the real conftest."""
    (tmp_path / "test_never.py").write_text(
        "def test_never(compare):\n    compare.run(lambda: None, {'b': lambda: None}, claims={'b': 1e9})\n"
    )
    (tmp_path / "conftest.py").write_text("from benchmarks.conftest import *  # noqa: F403\n")
    file = tmp_path / "results.json"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--benchmark-json={file}"),
            *(str(tmp_path), "-k", "never", *options),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},  # no worker
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == status, run.stdout + run.stderr
    assert "1000000000.00x" not in run.stdout
    assert "Claims met: 0 of 1. Not met here:" in run.stdout
    machine = json.loads(file.read_text())["machine_info"]
    assert {"threads", "torch", "unlearnx", "cpu"} <= machine.keys()


def test_results_without_room_are_found_before_the_benchmarks():
    code = (
        "import errno, os, pytest, sys\n"
        "def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "os.posix_fallocate = full\n"
        "sys.exit(pytest.main(['benchmarks', '-p', 'no:cacheprovider', '-k', 'nothing_of_this_name']))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no room for the results: " in run.stderr
    assert "MiB cannot be written there: No space left on device" in run.stderr
