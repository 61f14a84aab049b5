import json
import re

import pytest
import torch
from typer.testing import CliRunner

from unlearnx import experiments
from unlearnx.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_info():
    result = run("info")
    assert result.exit_code == 0
    for word in ("torch", "compiler", "cpu level", "threads"):
        assert word in result.output


def test_poison_digits(tmp_path):
    result = run(
        "run", "poison-digits", "--seeds", 1, "--epochs", 20, "--out", tmp_path, "--name", "x", "--no-progress"
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "x" / "result.json").read_text())
    (only,) = found["runs"]
    assert only["clean"]["accuracy"] > only["poisoned"]["accuracy"]
    assert found["flipped_labels"] == 287
    assert max(s["restored"] for s in found["summary"].values()) >= 0.5
    for entry in only["methods"].values():
        assert sum(map(sum, entry["confusion"])) == found["test_images"]
        assert entry["gradient_evaluations"] > 0
    report = (tmp_path / "x" / "report.html").read_text()
    assert "fine-tuning, last block" in report
    assert not re.search(r'(src|href)="(?!data:)', report)
    saved = sorted(f.name for f in (tmp_path / "x" / "seed-0").iterdir())
    assert {"clean.pt", "poisoned.pt", "poison.npz", "ssd.pt", "first-order.pt"} <= set(saved)
    assert torch.load(tmp_path / "x" / "seed-0" / "ssd.pt", weights_only=True).keys()


@pytest.mark.parametrize("given", ["folder", "file", "environment"])
def test_canary_alice(given, canary_result, tmp_path, monkeypatch):
    novel = tmp_path / "alice_in_wonderland.txt"
    novel.write_text("alice")
    calls = []

    class Study:
        def run(self, seeds, folder):
            calls.append(seeds)
            return canary_result

    def canary_alice(path, **settings):
        calls.append((path, settings))
        return Study()

    monkeypatch.setattr(experiments, "canary_alice", canary_alice)
    monkeypatch.setenv("UNLEARNX_DATA", str(tmp_path if given == "environment" else tmp_path / "elsewhere"))
    root = {"folder": ["--data-root", tmp_path], "file": ["--data-root", novel], "environment": []}[given]
    result = run("run", "canary-alice", *root, "--epochs", 2, "--no-progress", "--out", tmp_path, "--name", "x")
    assert result.exit_code == 0, result.output
    assert calls == [(novel, {"epochs": 2, "preset": "default", "progress": False}), [0, 1, 2]]
    assert "medians over 3 seeds" in result.output
    found = json.loads((tmp_path / "x" / "result.json").read_text())
    assert found["command"].startswith("unlearnx")
    assert found["environment"]["torch"] == torch.__version__
    assert "exposure" in (tmp_path / "x" / "report.html").read_text()


def test_features(real_data, tmp_path):
    result = run("run", "features-diabetes", "--seeds", 2, "--no-progress", "--out", tmp_path, "--name", "x")
    assert result.exit_code == 0, result.output
    assert "features-diabetes, means over 2 draws" in result.output
    assert "second order" in (tmp_path / "x" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "poison-mnist"], "no such experiment; there are poison-digits, poison-cifar, canary-alice, "),
        (["run", "poison-digits", "--data-root", "."], "--data-root belongs to poison-cifar, canary-alice, "),
        (["run", "canary-alice", "--limit", 3], "--limit belongs to poison-cifar"),
        (["run", "canary-alice"], "--data-root is missing"),
        (["run", "canary-alice", "--data-root", "."], "alice_in_wonderland.txt: is not a file"),
        (["run", "poison-cifar"], "--data-root is missing"),
        (["run", "features-adult"], "--data-root is missing: the folder with the tables"),
        (["run", "features-drebin", "--data-root", "."], "holds no drebin-malware.npz"),
        (["run", "poison-digits", "--preset", "fast"], "preset is 'fast'"),
        (["run", "poison-cifar", "--data-root", "."], "no CIFAR-10 found"),
        (["run", "poison-cifar", "--data-root", ".", "--clean", "a.pt"], "come together"),
        (["run", "poison-cifar", "--data-root", ".", "--clean", "a", "--poisoned", "b/c"], "holds 0 files"),
    ],
)
def test_clear_errors(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNLEARNX_DATA", raising=False)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
