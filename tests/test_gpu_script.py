"""benchmarks/gpu.sh and what it runs, as far as a machine without a GPU can tell."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks import report
from benchmarks.gpu import smoke
from unlearnx.selftest import references
from unlearnx.selftest.layers import conv2d, embedding, linear, scale_shift

SCRIPT = report.ROOT / "benchmarks" / "gpu.sh"
STAGES = ["probe", "build", "smoke", "selftest", "tests", "kernels", "large", "sanitizer", "rivals"]

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def gpu_sh(*arguments, python=sys.executable):
    environment = dict(os.environ, PYTHON=python)
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, env=environment)


def commands(output):
    """The commands of each stage that a dry run shows, and its limit in seconds."""
    stages = {}
    for line in output.splitlines():
        if match := re.fullmatch(r"== (\w+), at most (\d+) s", line):
            stages[match[1]] = (int(match[2]), [])
        elif line.startswith("$ "):
            list(stages.values())[-1][1].append(shlex.split(line)[1:])
    return stages


@needs_bash
def test_dry_run_goes_through_all_stages(tmp_path):
    result = gpu_sh("--dry-run", tmp_path)
    assert result.returncode == 0, result.stderr
    stages = commands(result.stdout)
    assert list(stages) == STAGES
    assert all(limit > 0 and shown for limit, shown in stages.values())
    assert sum(limit for limit, _ in stages.values()) <= 560
    assert (tmp_path / "gpu.log").read_text() == result.stdout
    assert [f.name for f in tmp_path.iterdir()] == ["gpu.log"]


@needs_bash
def test_cifar_is_a_call_of_its_own(tmp_path):
    limit, shown = commands(gpu_sh("--dry-run", tmp_path, "cifar").stdout)["cifar"]
    assert limit <= 560
    assert [command[-1] for command in shown if command[0] == "cp"] == [
        str(tmp_path / f"poison-cifar-{preset}.json") for preset in ("reference", "best")
    ]
    options = [word for command in shown for word in command if word.startswith("--")]
    usage = subprocess.run(
        [sys.executable, "-m", "unlearnx", "run", "poison-cifar", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, COLUMNS="200"),
    ).stdout
    assert set(options) - set(re.findall(r"--[\w-]+", usage)) == set()


@needs_bash
def test_unknown_stage(tmp_path):
    result = gpu_sh("--dry-run", tmp_path, "biuld")
    assert result.returncode == 2
    assert result.stdout == f"no stage biuld: {' '.join(STAGES)} cifar\n"


@needs_bash
def test_a_failing_build_ends_the_run(tmp_path):
    result = gpu_sh(tmp_path, "build", "smoke", python=shutil.which("false"))
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "failed: build"
    assert "== smoke" not in result.stdout


@needs_bash
def test_other_stages_go_on(tmp_path):
    result = gpu_sh(tmp_path, "smoke", "selftest", python=shutil.which("false"))
    assert result.stdout.splitlines()[-1] == "failed: smoke selftest"


@needs_bash
@pytest.mark.parametrize("stage", ["kernels", "large", "rivals"])
def test_stages_choose_tests_that_there_are(stage, tmp_path):
    (command,) = commands(gpu_sh("--dry-run", tmp_path, stage).stdout)[stage][1]
    if stage != "large" and not torch.cuda.is_available():  # the benchmarks take the devices that there are
        command = [word.replace("cuda", "cpu") if command[i - 1] == "-k" else word for i, word in enumerate(command)]
    result = subprocess.run([*command, "--collect-only"], cwd=report.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert re.search(r"^[1-9]\d*(/\d+)? tests? collected", result.stdout, flags=re.MULTILINE), result.stdout


@pytest.fixture
def few_kernels(monkeypatch):
    few = [
        linear(3, 5, outputs=4, inputs=9),
        conv2d(2, 3, (5, 4), 4, 3, channels_last=True, padding=1),
        embedding(3, 4, tokens=5, features=3),
        scale_shift(3, 4, 5, dim=1, statistics=True),
    ]
    monkeypatch.setattr(smoke, "LAYERS", few)
    monkeypatch.setattr(smoke, "HEADS", smoke.HEADS[:1])
    monkeypatch.setattr(smoke, "LIST_LENGTHS", (1, 65))
    monkeypatch.setattr(sys, "argv", ["smoke", "cpu"])


def test_smoke_passes(few_kernels, capsys):
    with pytest.raises(SystemExit) as end:
        smoke.main()
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0, lines
    assert re.fullmatch(r"\d{3,} results, 0 failures", lines[-1])


def test_smoke_finds_what_is_wrong(few_kernels, capsys, monkeypatch):
    right = references.lissa_step
    monkeypatch.setattr(references, "lissa_step", lambda *args: right(*args[:-1], args[-1] * 1.1))
    with pytest.raises(SystemExit) as end:
        smoke.main()
    assert end.value.code == 1
    assert "FAILED lissa_step_ of 65 tensors (float32, misaligned, TF32 on): error" in capsys.readouterr().out


def test_misaligned_copies_keep_their_strides():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    y = smoke.shifted(x, 1)
    assert torch.equal(x, y)
    assert y.stride() == x.stride()
    assert y.data_ptr() % 16 == y.untyped_storage().data_ptr() % 16 + 4


def test_a_result_without_its_value_is_no_match():
    nan = torch.tensor([1.0, float("nan")])
    assert smoke.relative_error(nan, nan) == 0
    assert not smoke.relative_error(nan, torch.ones(2)) <= 1


def test_results_become_a_table(tmp_path):
    results = tmp_path / "kernels-gpu.json"
    tests = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "benchmarks/gpu", "-k", "cpu and layer"]
    command = [sys.executable, "-m", "pytest", *tests, f"--benchmark-json={results}"]
    # pytest-benchmark measures nothing in pytest-xdist's workers, nor in what inherits their environment
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    result = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout
    table = report.comparison(json.loads(results.read_text()))
    assert re.search(r"`test_normalisation\[.*layer\]` \| [\d.]+ \| .*triad x 2/3 \*\*", table), table
