"""The comparison of two builds of the ops, with one build on both sides."""

import json
import subprocess
import sys

import pytest

from benchmarks.two_builds.__main__ import ROOT, compared


def test_medians_of_pairs_make_a_ratio():
    pairs = [{"before": 2.0, "after": 3.0}, {"before": 1.0, "after": 1.0}, {"before": 4.0, "after": 5.0}]
    assert compared(pairs) == {"before": 2.0, "after": 3.0, "ratio": 1.25, "range": [1.0, 1.5]}


def test_a_row_is_measured(tmp_path):
    command = [sys.executable, "-m", "benchmarks.two_builds", ROOT, "--only", "embedding_grad_dot"]
    command += ["--pairs", "1", "--rounds", "1", "--out", tmp_path / "found.json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["builds"]["before"] == found["builds"]["after"]
    (row,) = found["rows"]
    assert row["row"] == "embedding_grad_dot"
    for size in ("ordinary", "small"):
        assert row[size]["ratio"] == pytest.approx(row[size]["after"] / row[size]["before"])


def test_another_folder_is_refused(tmp_path):
    command = [sys.executable, "-m", "benchmarks.two_builds", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert f"{tmp_path} has no package unlearnx" in run.stderr
