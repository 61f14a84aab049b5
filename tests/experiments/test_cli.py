import dataclasses
import json
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

from tests.experiments.conftest import COMPARE
from tests.experiments.tables import in_80_columns
from unlearnx import ops
from unlearnx.cli import app
from unlearnx.experiments import runs
from unlearnx.experiments.output_folder import claimed
from unlearnx.experiments.registry import STUDIES
from unlearnx.experiments.study import Epochs


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_info():
    result = run("info")
    assert result.exit_code == 0
    for word in ("torch", "compiler", "cpu level", "threads"):
        assert word in result.output


@pytest.mark.parametrize(("op", "status"), [("ssd_dampen_", 0), ("no_such_op", 1)])
def test_selftest(op, status, monkeypatch):
    monkeypatch.setattr(ops, "__all__", [op])
    result = run("info", "--selftest")
    assert result.exit_code == status
    assert op in result.output


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
    in_80_columns(STUDIES["poison-digits"].table(found))
    page = (tmp_path / "x" / "report.html").read_text()
    assert "fine-tuning, last block" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    saved = sorted(f.name for f in (tmp_path / "x" / "seed-0").iterdir())
    assert {"clean.pt", "poisoned.pt", "poison.npz", "ssd.pt", "first-order.pt"} <= set(saved)
    assert torch.load(tmp_path / "x" / "seed-0" / "ssd.pt", weights_only=True).keys()


@pytest.fixture
def stand_in(monkeypatch):
    """Puts another function in the place of the one that prepares a study."""
    return lambda name, make: monkeypatch.setitem(STUDIES, name, dataclasses.replace(STUDIES[name], make=make))


@pytest.mark.parametrize("given", ["folder", "file", "environment"])
def test_canary_alice(given, canary_result, stand_in, tmp_path, monkeypatch):
    novel = tmp_path / "alice_in_wonderland.txt"
    novel.write_text("alice")
    calls = []

    class Study:
        def room(self, seeds):
            return 0

        def run(self, seeds, folder):
            calls.append(seeds)
            return canary_result

    def canary_alice(path, *, epochs: Epochs = None, progress=True):
        calls.append((path, epochs, progress))
        return Study()

    stand_in("canary-alice", canary_alice)
    monkeypatch.setenv("UNLEARNX_DATA", str(tmp_path if given == "environment" else tmp_path / "elsewhere"))
    root = {"folder": ["--data-root", tmp_path], "file": ["--data-root", novel], "environment": []}[given]
    result = run("run", "canary-alice", *root, "--epochs", 2, "--no-progress", "--out", tmp_path, "--name", "x")
    assert result.exit_code == 0, result.output
    assert calls == [(novel if given == "file" else tmp_path, 2, False), [0, 1, 2]]
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


def test_compare(compared):
    result, folder = compared
    assert result.exit_code == 0, result.output
    assert "means over 2 seeds" in result.stdout
    assert re.search("(Closest to retraining|Smallest average gap): ssd", result.stdout)
    found = json.loads((folder / "result.json").read_text())
    assert list(found["methods"]) == ["fine-tune", "ssd"]
    assert [r["seed"] for r in found["runs"]] == [0, 1]
    assert found["request"]["class_name"] == "3"
    assert found["environment"]["torch"] == torch.__version__
    assert "average gap" in (folder / "report.html").read_text()


def test_repeat(compared, tmp_path):
    shutil.copytree(compared[1] / "trials" / "seed-1", tmp_path / "trials")
    file = tmp_path / "trials" / "ssd.json"
    repeat = ("run", "--recipe", file, "--out", tmp_path, "--no-progress", "--name")
    result = run(*repeat, "y")
    assert result.exit_code == 0, result.output
    assert "epochs" not in result.output  # nothing is trained
    assert "Measures that differ: none" in result.output
    assert max(len(line) for line in result.stdout.splitlines() if not line.startswith("Trials: ")) <= 80
    assert "…" not in result.stdout
    trial = json.loads(file.read_text())
    trial["measures"]["forget_accuracy"] += 1
    file.write_text(json.dumps(trial))
    result = run(*repeat, "z")
    assert result.exit_code == 1
    assert "Measures that differ: forget_accuracy" in result.output
    assert result.output.count("differs") == 1


def test_run_sweeps(tmp_path):
    own = ("--sweep", "alpha=1,2", "--epochs", 1, "--seeds", 1, "--share", 0.2)
    result = run("run", "forget-random-digits", *own, "--no-progress", "--out", tmp_path, "--name", "x")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "x" / "result.json").read_text())
    assert [point["value"] for point in found["sweeps"][0]["points"]] == [1, 2]
    assert list(found["methods"]) == ["ssd", "fine-tune", "second-order"]
    assert found["request"]["share"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "poison-mnist"],
            "EXPERIMENT is 'poison-mnist', expected one of poison-digits, poison-cifar, canary-alice, canary-lm",
        ),
        (
            ["run", "poison-digits", "--data-root", "."],
            "--data-root is not an option of poison-digits, but of poison-cifar, canary-alice, canary-lm, forget-",
        ),
        (
            ["run", "canary-alice", "--limit", 3],
            "--limit is not an option of canary-alice, but of poison-cifar, forget-class-cifar, forget-random",
        ),
        (
            ["run", "poison-digits", "--sweep", "alpha=1"],
            "--sweep is not an option of poison-digits, but of forget-class-digits, forget-random-digits,",
        ),
        (
            ["run", "forget-class-digits", "--share", 0.1],
            "--share is not an option of forget-class-digits, but of forget-random-digits, forget-random-",
        ),
        (["run", "forget-random-digits", "--share", 2], "share is 2.0, expected a number between 0 and 1"),
        (["run", "forget-class-digits", "--sweep", "alpha"], "sweep is 'alpha', expected numbers as in"),
        (["run", "forget-class-digits", "--preset", "best"], "preset is 'best'"),
        (["run", "forget-class-cifar"], "--data-root is missing"),
        (["run", "--recipe", "x.json"], "x.json: no such file"),
        (["run", "--recipe", "x.json", "--epochs", 1], "--epochs cannot be given with --recipe"),
        (["run", "--recipe", "x.json", "--seeds", 1], "--seeds cannot be given with --recipe"),
        (
            ["compare", "poison-digits"],
            "EXPERIMENT is 'poison-digits', which has no retrained model to compare methods with",
        ),
        (["compare", "canary-alice"], "EXPERIMENT is 'canary-alice', which has no retrained model"),
        (["tune", "tofu"], "EXPERIMENT is 'tofu', which chooses the strengths of its methods by itself"),
        (["compare", "poison-mnist"], "EXPERIMENT is 'poison-mnist', expected one of"),
        (
            ["compare", "forget-class-digits", "--methods", "ssd,magic"],
            "methods: 'magic' is unknown, expected names among ssd, fisher-masking, fine-tune",
        ),
        (["compare", "forget-class-digits", "--forget-class", "x"], "forget_class is 'x', expected one of 0, 1"),
        (["run", "canary-alice"], "--data-root is missing"),
        (["run", "forget-random-digits", "--share", "0.0001"], "share is 0.0001: it gives 1 images of the forget set"),
        (["run", "forget-random-digits", "--share", "0.9999"], "share is 0.9999: it gives 0 images of the retain set"),
        (["run", "forget-class-digits", "--sweep", "fine-tune.loss_fn=1"], "has a parameter 'loss_fn'"),
        (["run", "forget-class-digits", "--sweep", "fine-tune.epochs=1.5"], "expected integers for epochs"),
        (["run", "forget-class-digits", "--sweep", "ssd.alpha=nan"], "alpha is nan, expected"),
        (["run", "poison-cifar", "--data-root", ".", "--poison", "a.npz"], "--poison is given alone"),
        (
            ["run", "poison-cifar", "--data-root", ".", "--clean", "a", "--poisoned", "b", "--budget", 3],
            "--budget is given with --poisoned",
        ),
        (["run", "canary-alice", "--data-root", "."], "alice_in_wonderland.txt: is not a file"),
        (["run", "poison-cifar"], "--data-root is missing"),
        (["run", "features-adult"], "--data-root is missing, expected the folder with its tables"),
        (["run", "features-drebin", "--data-root", "."], "has no file drebin-malware.npz"),
        (["run", "poison-digits", "--preset", "fast"], "preset is 'fast'"),
        (["run", "poison-cifar", "--data-root", "."], "no CIFAR-10 found"),
        (["run", "poison-cifar", "--data-root", ".", "--clean", "a.pt"], "--clean is given alone, expected"),
        (["run", "poison-cifar", "--data-root", ".", "--clean", "a", "--poisoned", "b/c"], "holds 0 files"),
    ],
)
def test_clear_errors(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNLEARNX_DATA", raising=False)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_overwritten(stand_in, tmp_path):
    (tmp_path / "x").mkdir()
    file = tmp_path / "x" / "result.json"
    for content, experiment, message in (
        (
            '{"experiment": "forget-class-digits"}',
            "forget-random-digits",
            "holds a run of forget-class-digits, expected",
        ),
        ("[1]", "forget-class-digits", "result.json is not of a run"),
        ("half", "forget-class-digits", "result.json is not of a run"),
    ):
        file.write_text(content)
        result = run("compare", experiment, "--out", tmp_path, "--name", "x")
        assert result.exit_code == 2
        assert message in result.stderr
        assert file.read_text() == content
    file.write_text('{"experiment": "features-diabetes"}')

    class Study:
        def room(self, seeds):
            return 0

    stand_in("features-diabetes", lambda *_, **__: Study())
    result = run("run", "features-diabetes", "--data-root", tmp_path, "--out", tmp_path, "--name", "x")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert f"out: {tmp_path / 'x'} holds result.json already" in result.stderr


def test_two_runs_of_one_name(tmp_path):
    with claimed(tmp_path / "x"):
        result = run("run", "poison-digits", "--out", tmp_path, "--name", "x")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert f"another run is writing to {tmp_path / 'x'}" in result.stderr


def test_settings_that_were_interrupted_do_not_block_others(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    common = ("run", "poison-digits", "--seeds", 1, "--out", tmp_path, "--name", "x", "--no-progress")
    with monkeypatch.context() as patched:
        patched.setattr(runs, "save_model", interrupted)
        assert run(*common, "--epochs", 1).exit_code == 130
    (checkpoint,) = (tmp_path / "x" / "seed-0").glob("*.checkpoint")
    assert run(*common, "--epochs", 2).exit_code == 0
    assert not checkpoint.exists()


@pytest.mark.parametrize(("part", "value", "message"), [("seed", "../../x", "seed is"), ("model", 3, "the model is 3")])
def test_recipes_that_name_other_files(part, value, message, compared, tmp_path):
    trial = json.loads((compared[1] / "trials" / "seed-0" / "ssd.json").read_text())
    trial["recipe"][part] = value
    (tmp_path / "ssd.json").write_text(json.dumps(trial))
    result = run("run", "--recipe", tmp_path / "ssd.json", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["ssd.json"]


def test_a_damaged_model_of_a_trial(compared, tmp_path):
    shutil.copytree(compared[1], tmp_path / "x")
    (tmp_path / "x" / "trials" / "seed-0" / "original.pt").write_bytes(b"PK\x03\x04")
    result = run(*COMPARE, "--out", tmp_path)
    assert result.exit_code == 2
    assert "original.pt: holds more than tensors, or is damaged" in result.stderr


def test_tune(tmp_path):
    words = ("tune", "forget-class-digits", "--methods", "fine-tune", "--trials", 2, "--epochs", 2)
    result = run(*words, "--out", tmp_path, "--name", "x", "--no-progress")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "x" / "tuned.json").read_text())
    assert len(found["methods"]["fine-tune"]["tried"]) == 2
    assert "tuned.json" in result.stdout
    assert "lr=" in result.stdout
