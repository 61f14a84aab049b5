import dataclasses
import json
import math

import pytest
import torch

from unlearnx.data import Splits
from unlearnx.experiments import (
    forget_class_cifar,
    forget_class_digits,
    forget_random_cifar,
    forget_random_digits,
)
from unlearnx.experiments.evaluation import Sets
from unlearnx.experiments.forget import Sweep, repeat, repetition, studies
from unlearnx.experiments.measures import TIMES, changed, described
from unlearnx.experiments.report import environment
from unlearnx.experiments.report import forget as view
from unlearnx.experiments.report.forget import table
from unlearnx.experiments.run_store import read_trial
from unlearnx.experiments.showcase import _displayable
from unlearnx.methods import SSD, FineTune, FirstOrder, Outcome, Pipeline, RandomPerturbation
from unlearnx.models.training import _Run

METHODS = {"ssd": SSD(alpha=1.0, max_increase=9.0), "first-order": FirstOrder(steps=1, params="last:2")}


def small(make=forget_class_digits, *, epochs=2, **options):
    study = make(epochs=epochs, progress=False, **options)
    s = study.splits
    splits = Splits(s.train_x[:500], s.train_y[:500], s.test_x[:200], s.test_y[:200], s.classes)
    return dataclasses.replace(study, splits=splits, methods=METHODS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of a class, its folder and its result."""
    folder = tmp_path_factory.mktemp("class")
    study = dataclasses.replace(small(), sweeps=[Sweep("ssd", "alpha", (2, 1e6))])
    return study, folder, study.run([0], folder)


@pytest.fixture
def counted(monkeypatch):
    """Counts epochs of training, but for those of a measure, which keeps no checkpoint, and calls of methods."""
    counts = {"epochs": 0, "methods": 0}

    def count(owner, name, key):
        original = getattr(owner, name)

        def counting(own, *args, **kwargs):
            counts[key] += getattr(own, "checkpoint", own) is not None
            return original(own, *args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(_Run, "_run_epoch", "epochs")
    count(SSD, "__call__", "methods")
    return counts


def test_result_of_a_class(finished):
    study, _, result = finished
    (run,) = result["runs"]
    n = int((study.splits.train_y == 1).sum())
    assert result["request"] == {
        "kind": "class",
        "class": 1,
        "class_name": "1",
        "share": None,
        "forget_images": n,
        "description": f"all {n} images of class '1'",
    }
    assert result["methods"]["ssd"].startswith("SSD(")
    for name in ("original", "retrained", *METHODS):
        entry = run[name] if name in run else run["methods"][name]
        assert entry["measures"].keys() == result["measures"].keys() == described("1").keys()
        assert result["summary"][name]["gap"] == dict.fromkeys(("mean", "low", "high"), entry["measures"]["gap"])
        assert entry["measures"]["seconds"] == entry["seconds"]
        assert result["attacks"][name]["ssd"] == {
            "test": entry["measures"]["mia_ssd"],
            "test_forgotten": entry["measures"]["mia_ssd_class"],
        }
    for entry in run["methods"].values():
        fields = {field.name for field in dataclasses.fields(Outcome)}
        assert entry.keys() == {"measures", "warning", *fields - {"model"}}
    assert result["winner"] in result["pareto"]
    assert result["confidences"].keys() == {"original", "retrained", result["winner"]}
    for parts in result["confidences"].values():
        assert {part: len(values) for part, values in parts.items()} == {
            "forget": n,
            "retain": 500 - n,
            "test": int((study.splits.test_y != 1).sum()),
            "test_forgotten": int((study.splits.test_y == 1).sum()),
        }
    shown = result["saliency"]["images"]
    assert [image["set"] for image in shown] == ["forget"] * 4 + ["retain"] * 4
    assert all(image["label"] == "1" for image in shown[:4])
    pixels = torch.tensor([[image[key] for key in ("image", "original", "unlearned", "retrained")] for image in shown])
    assert pixels.shape == (8, 4, 8, 8)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_retraining_is_no_distance_from_itself(finished):
    measures = finished[2]["runs"][0]["retrained"]["measures"]
    assert measures["gap"] == measures["activation_distance"] == 0
    assert measures["js"] == pytest.approx(0, abs=1e-12)
    assert measures["tow"] == measures["runtime_ratio"] == 1
    assert measures["relearn_time"] in (1, None)
    assert measures["forget_accuracy"] == measures["test_forgotten_accuracy"] == 0
    assert measures["ua"] == 1


def test_sweep_tries_every_value(finished):
    ((sweep),) = finished[2]["sweeps"]
    assert (sweep["method"], sweep["parameter"]) == ("ssd", "alpha")
    assert [(point["value"], point["applied"]) for point in sweep["points"]] == [(2, True), (1e6, False)]
    assert sweep["points"][1]["measures"]["gap"] == finished[2]["runs"][0]["original"]["measures"]["gap"]


def test_trials_are_the_same_when_made_again(finished, tmp_path):
    study, folder, _ = finished
    study.run([0], tmp_path)
    files = sorted((folder / "trials" / "seed-0").glob("*.json"))
    assert len(files) == 6  # those of the sweep are trials too
    for file in files:
        recorded, again = read_trial(file), read_trial(tmp_path / "trials" / "seed-0" / file.name)
        assert changed(recorded, again) == []
        assert recorded["fingerprint"] == again["fingerprint"]
        assert recorded.get("gradient_evaluations") == again.get("gradient_evaluations")
        assert (
            torch.load(file.with_suffix(".pt")).keys()
            == torch.load(tmp_path / "trials/seed-0" / f"{file.stem}.pt").keys()
        )


def test_finished_runs_are_not_repeated(finished, counted):
    study, folder, result = finished
    assert json.dumps(study.run([0], folder)) == json.dumps(result)
    assert counted == {"epochs": 0, "methods": 0}


class Killed(Exception):
    pass


# What has to be made after the line of the log that the run is killed at.
@pytest.mark.parametrize(
    ("line", "epochs", "methods"),
    [
        ("training, retrained", 2, 2),
        ("0, original:", 0, 2),
        ("0, ssd:", 0, 1),
        ("0, first-order:", 0, 0),
    ],
)
def test_a_killed_run_goes_on(line, epochs, methods, counted, finished, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        FirstOrder, "__call__", lambda self, *a, call=FirstOrder.__call__: calls.append(1) or call(self, *a)
    )

    def kill(said):
        if line in said:
            raise Killed

    study = small()
    with pytest.raises(Killed):
        dataclasses.replace(study, log=kill).run([0], tmp_path)
    counted.update(epochs=0, methods=0)
    calls.clear()
    again = study.run([0], tmp_path)
    assert counted["epochs"] == epochs
    assert counted["methods"] + len(calls) == methods
    assert not list(tmp_path.rglob("*.checkpoint"))
    for name in METHODS:
        assert changed(finished[2]["runs"][0]["methods"][name], again["runs"][0]["methods"][name]) == []


def test_another_configuration_is_made_anew(finished, counted, tmp_path):
    lines = []
    small().run([0], tmp_path)
    counted.update(epochs=0, methods=0)
    other = dataclasses.replace(small(epochs=1), log=lines.append)
    other.run([0], tmp_path)
    assert counted == {"epochs": 2, "methods": 1}
    for name in ("original", "retrained", *METHODS):
        assert f"seed 0, {name}: was made with a different training; making it again" in lines
    counted.update(epochs=0, methods=0)
    lines.clear()
    dataclasses.replace(other, methods={**METHODS, "ssd": SSD(alpha=2.0)}).run([0], tmp_path)
    assert counted == {"epochs": 0, "methods": 1}
    assert "seed 0, ssd: was made with a different method; making it again" in lines


def test_random_share_is_another_one_for_every_seed(tmp_path):
    study = small(forget_random_digits, share=0.2)
    first, second = study.forget(0), study.forget(1)
    assert len(first) == len(second) == round(0.2 * len(study.splits.train_y))
    assert torch.equal(first, study.forget(0))
    assert not torch.equal(first, second)
    result = study.run([0, 1], tmp_path)
    assert result["request"]["description"] == f"{len(first)} images drawn at random, 20 % of all"
    assert "back\n%" in [column.header for column in table(result).columns]
    assert "What comes back" in view.page(result).render({**result, "command": "", "environment": environment()})
    assert result["measures"].keys() == described(None).keys() == result["runs"][1]["original"]["measures"].keys()
    gaps = [run["methods"]["ssd"]["measures"]["gap"] for run in result["runs"]]
    summary = result["summary"]["ssd"]["gap"]
    assert summary["mean"] == pytest.approx(sum(gaps) / 2)
    assert summary["high"] - summary["mean"] == pytest.approx(12.7062 * abs(gaps[0] - gaps[1]) / 2, rel=1e-4)


def test_sets_of_a_class():
    x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])
    sets = Sets.make((x, y), (x[:3], y[:3]), torch.tensor([1, 3]), 1)
    assert {part: numbers.tolist() for part, numbers in sets.parts.items()} == {
        "forget": [1, 3],
        "retain": [0, 2],
        "test": [4, 6],
        "test_forgotten": [5],
    }
    assert sets.numbers("test")[1].tolist() == [0, 2]
    assert sets.all_test[0].tolist() == [4, 5, 6]
    assert sets.all_test[1].tolist() == [0, 1, 2]
    assert Sets.make((x, y), None, torch.tensor([1, 3]), 1).parts.keys() == {"forget", "retain"}


def test_a_trial_is_repeated_from_its_recipe(finished, counted, tmp_path, monkeypatch):
    _, folder, _ = finished
    monkeypatch.setattr(repetition, "FORGETTING", [dataclasses.replace(studies.FORGETTING[0], make=small)])
    file = folder / "trials" / "seed-0" / "ssd.json"
    recorded = read_trial(file)
    again = repeat(recorded["recipe"], tmp_path / "a", beside=file.parent, progress=False)
    assert changed(recorded, again) == []
    assert counted == {"epochs": 0, "methods": 1}
    alone = repeat(recorded["recipe"], tmp_path / "b", beside=tmp_path, progress=False)
    assert changed(recorded, alone) == []
    assert counted == {"epochs": 4, "methods": 2}
    original = read_trial(folder / "trials" / "seed-0" / "original.json")
    assert changed(original, repeat(original["recipe"], tmp_path / "c", beside=file.parent, progress=False)) == []
    assert counted["epochs"] == 8
    with pytest.raises(ValueError, match="the run that the recipe belongs to"):
        repeat(recorded["recipe"], folder, beside=file.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiment": "poison-digits"}, "the experiment is 'poison-digits'"),
        ({"options": {"limit": 3}}, "unexpected keyword argument 'limit'"),
        ({"request": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"training": {"training": "Course", "arguments": {}}}, "unlearnx has nothing for"),
    ],
)
def test_recipes_that_are_not_understood(change, message, finished, tmp_path):
    recipe = {**finished[0].recipe("ssd", 0, METHODS["ssd"]), **change}
    with pytest.raises(ValueError, match=message):
        repeat(recipe, tmp_path, beside=tmp_path)


def test_changed_leaves_times_out():
    recorded = {"measures": {**dict.fromkeys(TIMES, 1.0), "gap": 0.1, "js": 0.2, "relearn_time": None}}
    again = {"measures": {**dict.fromkeys(TIMES, 2.0), "gap": 0.1, "js": math.nextafter(0.2, 1), "relearn_time": None}}
    assert changed(recorded, again) == ["js"]
    assert changed({}, again) == []


def test_sweeps_are_read():
    methods = {"ssd": SSD(), "fine-tune": FineTune()}
    assert Sweep.parse("alpha=2,0.5,1e1", methods) == Sweep("ssd", "alpha", (2, 0.5, 10.0))
    assert Sweep.parse("fine-tune.batch_size=8", methods) == Sweep("fine-tune", "batch_size", (8,))
    assert list(Sweep.parse("ssd.lam=1,2", methods).variants(methods)) == ["ssd lam=1", "ssd lam=2"]


def test_a_parameter_of_one_stage_is_swept():
    methods = {"both": Pipeline([RandomPerturbation(0.2), FineTune(epochs=1)])}
    variants = Sweep.parse("beta=0.1,0.4", methods).variants(methods)
    assert [method.stages[0].beta for method in variants.values()] == [0.1, 0.4]
    assert all(method.stages[1] == FineTune(epochs=1) for method in variants.values())
    with pytest.raises(ValueError, match="none of both has a parameter 'batch_size'"):  # both stages have
        Sweep.parse("batch_size=8", methods)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha", "expected numbers"),
        ("alpha=", "expected numbers"),
        ("alpha=two", "expected numbers"),
        ("alpha=-1", "alpha is -1"),
        ("beta=1", "none of ssd, fine-tune has a parameter 'beta'"),
        ("batch_size=1", "ssd and fine-tune have a parameter 'batch_size'"),
        ("ssd.epochs=1", "none of"),
        ("ssd.seed=1", "none of"),
    ],
)
def test_sweeps_that_do_not_fit(text, message):
    with pytest.raises(ValueError, match=message):
        Sweep.parse(text, {"ssd": SSD(), "fine-tune": FineTune()})


def test_a_swept_method_takes_part():
    assert list(forget_class_digits(methods=["ssd"], sweep=["fine-tune.lr=1e-3"]).methods) == ["ssd", "fine-tune"]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (forget_class_digits, {"forget_class": "ten"}, "forget_class is 'ten', expected one of 0, 1, 2"),
        (forget_class_digits, {"forget_class": 10}, "forget_class is 10"),
        (
            forget_class_digits,
            {"methods": ["retrian"]},
            "methods: 'retrian' is unknown, expected names among ssd, fisher-masking, fine-tune",
        ),
        (forget_class_digits, {"preset": "best"}, "preset is 'best'"),
        (forget_random_digits, {"share": 0.0}, "share is 0.0"),
        (forget_random_digits, {"share": 1.0}, "share is 1.0"),
    ],
)
def test_clear_errors(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_either_a_class_or_a_share_is_forgotten():
    with pytest.raises(ValueError, match=r"forget_class is 1 and share 0\.1, expected exactly one of them"):
        dataclasses.replace(small(), share=0.1)


def test_models_need_files_of_their_own():
    with pytest.raises(
        ValueError, match="some names give the same file, expected different ones, got original, retrained, a-b, a-b"
    ):
        dataclasses.replace(small(), methods={"a b": SSD(), "A-B": SSD()})


def test_a_method_that_cannot_be_written_is_refused_before_training(counted, tmp_path):
    study = dataclasses.replace(small(), methods={"mine": SSD(loss_fn=lambda output, y: output)})
    with pytest.raises(ValueError, match=r"mine\.loss_fn is <function"):
        study.run([0], tmp_path)
    assert counted["epochs"] == 0


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (forget_class_cifar, {"forget_class": 1, "share": None}),
        (forget_random_cifar, {"forget_class": None, "share": 0.1}),
    ],
)
def test_cifar(make, what, monkeypatch):
    x, y = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    splits = Splits(x, y, x, y, ["airplane", "automobile", *"cdefghij"])
    monkeypatch.setattr(studies, "load_cifar10", lambda root, limit: splits)
    study = make("somewhere", limit=20, progress=False)
    recipe = study.recipe("ssd", 0, study.methods["ssd"])
    assert recipe["options"] == {"root": "somewhere", "limit": 20}
    assert recipe["request"] == what
    assert recipe["training"]["arguments"]["epochs"] == 14
    assert all(row.keys() <= described("1").keys() for row in study.published[0]["rows"].values())


def test_one_forget_set_for_all_seeds():
    study = small(forget_random_digits, preset="neurips23")
    assert torch.equal(study.forget(0), study.forget(7))
    assert study.recipe("original", 7)["preset"] == "neurips23"


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 4, 4)), (3, (2, 4, 4, 3))])
def test_images_are_shown_in_their_own_range(channels, shape):
    pixels = torch.rand(5, channels, 4, 4)
    pixels[4], pixels[3] = 0, 1
    normalised = (pixels - torch.rand(channels, 1, 1)) / (0.1 + torch.rand(channels, 1, 1))
    shown = _displayable(normalised[:2], normalised)
    assert shown.shape == shape
    assert torch.allclose(shown.reshape(2, 4, 4, channels), pixels[:2].permute(0, 2, 3, 1), atol=1e-6)
