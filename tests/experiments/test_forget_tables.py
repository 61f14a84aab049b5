"""The studies of the field's tables, on images that tell their classes by their colours."""

import dataclasses
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from unlearnx.data import CIFAR100, Splits
from unlearnx.experiments import forget_class_of, forget_random_of, forget_subclass_of
from unlearnx.experiments.forget import cifar, repeat
from unlearnx.experiments.forget.methods import resnet_methods
from unlearnx.experiments.forget.protocols import PROTOCOLS
from unlearnx.experiments.forget.published import published
from unlearnx.experiments.forget.quality import quality
from unlearnx.experiments.forget.references import check_never_saw
from unlearnx.experiments.forget.trials import SeedTrials
from unlearnx.experiments.measures import changed
from unlearnx.experiments.measures import described as described_measures
from unlearnx.experiments.recipes import from_recipe, to_recipe
from unlearnx.experiments.registry import STUDIES
from unlearnx.experiments.report import forget as report
from unlearnx.experiments.run_store import RunStore, read_trial
from unlearnx.experiments.runs import write_json
from unlearnx.metrics import forgetting_quality, logit_confidence
from unlearnx.models import resnet9

CLASSES = ["airplane", "automobile", "bird", "cat"]
TINY = partial(resnet9, width=2)


def colours(n, classes, seed):
    """Images (N, 3, 16, 16) of so many classes, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    shade = F.one_hot(y % 3, 3).float() * (1 + y // 3)[:, None]
    return 2 * shade[:, :, None, None] + torch.randn(n, 3, 16, 16, generator=generator) / 2, y


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small images in the place of CIFAR, and small networks."""
    splits = Splits(*colours(160, 4, 0), *colours(80, 4, 1), CLASSES)
    fine = CIFAR100(
        *colours(160, 4, 0),
        *colours(80, 4, 1),
        ["rocket", "sea", "cloud", "tank"],
        ["natural_scenes", "vehicles_2"],
        torch.tensor([1, 0, 0, 1]),
    )
    monkeypatch.setattr(cifar, "load_cifar10", lambda root, limit: splits)
    monkeypatch.setattr(cifar, "load_cifar100", lambda root, limit: fine)
    monkeypatch.delenv("UNLEARNX_MODELS", raising=False)
    for name, protocol in PROTOCOLS.items():
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(protocol, network=TINY))


def quick(make=forget_random_of, data="cifar10", **options):
    return make(data, "somewhere", progress=False, **options)


def test_every_study_has_its_name():
    names = {f"forget-{kind}-{data}" for kind in ("class", "random") for data in ("cifar10", "cifar20", "cifar100")}
    assert STUDIES.keys() >= names | {"forget-subclass-cifar20", "forget-subclass-cifar100"}
    assert {"preset", "models", "share"} <= STUDIES["forget-random-cifar10"].options.keys()
    assert (
        STUDIES["forget-class-cifar10"].options["forget_class"]
        == STUDIES["forget-class-digits"].options["forget_class"]
    )


def test_all_methods_keep_to_the_budget(described, tmp_path):
    result = quick().run([0], tmp_path)
    assert result["methods"].keys() == resnet_methods(None, 1).keys()
    # K-FADE reads at most 10,000 images that stay, and the recursion of the influence row 1,002: all of them here.
    # The noise of UNSIR and the gradients of MSG are of as many samples as for a large set.
    over = ["k-fade", "influence", "unsir", "msg"]
    assert result["budget"] == {"share": 0.1, "gradient_evaluations": int(0.1 * 14 * 144), "over": over}
    measures = result["runs"][0]["methods"]["fine-tune"]["measures"]
    assert measures["gradient_ratio"] == pytest.approx(1 / 14)
    assert result["runs"][0]["retrained"]["measures"]["gradient_ratio"] == 1
    assert result["runs"][0]["original"]["measures"]["gradient_ratio"] == pytest.approx(160 / 144)
    assert measures.keys() == result["measures"].keys()
    assert "relearn_time" not in measures
    back = ("rounded_8", "rounded_4", "relearned_1", "relearned_10", "probe")
    for entry in (*result["runs"][0]["methods"].values(), result["runs"][0]["retrained"]):
        assert all(0 <= entry["measures"][key] <= 1 for key in back)
    html = report.page(result).render({**result, **described})
    for text in ("published 1.15", "201 gradients of single samples at most", "Fan et al., SalUn"):
        assert text in html, text
    recorded = read_trial(tmp_path / "trials" / "seed-0" / "salun.json")
    again = repeat(recorded["recipe"], tmp_path / "again", beside=tmp_path / "trials" / "seed-0", progress=False)
    assert changed(recorded, again) == []


@pytest.mark.parametrize(("kind", "share"), [("class", None), ("random", 0.1), ("random", 0.5)])
def test_published_rows_have_ours_beside_them(kind, share):
    compared = resnet_methods(1 if kind == "class" else None, 1)
    (table,) = published(kind, "cifar10", share)
    assert table["rows"].keys() <= {"retrained", *compared}
    assert compared.keys() >= {"unsir", "jit", "lfssd", "msg", "ct", "rum", "ssd"}


def test_trials_from_before_a_measure_was_taken_still_count(tmp_path):
    study = quick(preset="neurips23", epochs=1, methods=["gradient-ascent"])
    study.run([0, 1], tmp_path)
    for file in (tmp_path / "trials" / "seed-1").glob("*.json"):
        trial = read_trial(file)
        del trial["measures"]["probe"]
        write_json(file, trial)
    summary = study.run([0, 1], tmp_path)["summary"]["gradient-ascent"]
    assert summary["probe"]["mean"] is None
    assert summary["gap"]["mean"] is not None


def test_published_standard_deviations_are_shown():
    (table,) = published("random", "cifar10", 0.5)
    result = {"measures": described_measures(None), "summary": {"ssd": {"retain_accuracy": {"mean": 0.9}}}}
    beside = report._beside(result, table)
    cells = {name: row for name, _, row in beside["rows"]}
    (retain,) = [i for i, c in enumerate(beside["columns"]) if c["title"] == "retain accuracy"]
    assert cells["ssd"][retain] == ("90.00", "72.00 ± 42.00")
    assert cells["scrub"][retain] == ("", "100.00")


@pytest.fixture
def models(tmp_path):
    """A folder with an original and a retrained model of the request to forget automobiles."""
    study = quick(forget_class_of)
    sets = study.sets(0)
    (tmp_path / "resnet9").mkdir()
    for name, data in {"original": sets.train, "class": sets.samples("retain")}.items():
        model = TINY(classes=4)
        dataclasses.replace(study.training, autocast=None).run(model, data)
        half = {k: t.half() if t.dim() > 1 else t for k, t in model.state_dict().items()}
        torch.save(half, tmp_path / "resnet9" / f"{name}-0.pt")
    return tmp_path


def test_trained_models_are_read(models, described, tmp_path, monkeypatch):
    lines = []
    study = dataclasses.replace(quick(forget_class_of, models=models, methods=["gradient-ascent"]), log=lines.append)
    result = study.run([0], tmp_path / "run")
    assert not [line for line in lines if "training," in line]
    run = result["runs"][0]
    assert run["retrained"]["read_from"] == "class-0.pt"
    assert run["retrained"]["seconds_are_estimated"]
    assert run["retrained"]["measures"]["forget_accuracy"] == 0
    assert run["original"]["measures"]["forget_accuracy"] > 0.5
    assert "read from files" in report.page(result).render({**result, **described})
    recorded = read_trial(tmp_path / "run" / "trials" / "seed-0" / "retrained.json")
    assert recorded["recipe"]["weights"].keys() == {"original", "retrained"}
    monkeypatch.setenv("UNLEARNX_MODELS", str(models))
    assert quick(forget_class_of).file("retrained", 0) == models / "resnet9" / "class-0.pt"
    assert quick(forget_class_of).file("retrained", 1) is None
    assert quick(forget_class_of, forget_class="bird").file("retrained", 0) is None
    assert quick(forget_class_of, epochs=1).file("original", 0) is None


def test_a_model_that_saw_the_forget_set_is_refused(models, tmp_path):
    folder = models / "resnet9"
    (folder / "class-0.pt").write_bytes((folder / "original-0.pt").read_bytes())
    with pytest.raises(ValueError, match=r"class-0\.pt is right on .* expected a model that never saw the forget set"):
        quick(forget_class_of, models=models, methods=["gradient-ascent"]).run([0], tmp_path / "run")
    check_never_saw(folder, {"forget_accuracy": 0.88, "retain_accuracy": 0.97}, 5000)


def test_models_of_other_settings_are_refused(tmp_path):
    for options in ({"limit": 100}, {"epochs": 1}, {"preset": "ssd"}, {"data": "cifar20"}):
        with pytest.raises(ValueError, match=r"models: .* expected neither limit nor epochs"):
            quick(models=tmp_path, **options)
    with pytest.raises(ValueError, match="preset is 'fast', expected one of quick, salun, ssd, neurips23"):
        quick(preset="fast")


def test_a_subclass_is_a_part_of_what_the_network_tells_apart():
    study = quick(forget_subclass_of, "cifar20", forget_class="tank")
    sets = study.sets(0)
    assert study.splits.classes == ["natural_scenes", "vehicles_2"]
    assert sets.parts["forget"].tolist() == list(range(3, 160, 4))
    assert sets.numbers("forget")[1].unique().tolist() == [1]
    assert len(sets.parts["test_forgotten"]) == 20
    assert sets.numbers("test")[1].bincount().tolist() == [40, 20]
    assert study._request("tank", 0)["description"] == "all 40 images of class 'tank', which are a part of 'vehicles_2'"
    assert quick(forget_subclass_of, "cifar100").forget_class == quick(forget_class_of, "cifar100").forget_class == 0
    assert quick(forget_class_of, "cifar20").splits.train_y.unique().tolist() == [0, 1]


def test_protocols(monkeypatch):
    assert quick(preset="ssd").attack == "ssd"
    fixed = quick(preset="neurips23")
    assert torch.equal(fixed.forget(0), fixed.forget(1))
    assert fixed.recipe("original", 0)["preset"] == "neurips23"
    monkeypatch.setitem(PROTOCOLS, "salun", dataclasses.replace(PROTOCOLS["salun"], images=120))
    salun = quick(preset="salun", share=0.5)
    assert (len(salun.splits.train_x), len(salun.splits.test_x), len(salun.forget(0))) == (120, 80, 60)
    assert (salun.training.epochs, salun.training.lr, salun.training.pad) == (182, 0.1, 4)
    assert quick(preset="salun", epochs=3).training.epochs == 3
    assert [row["rows"]["salun"]["gap"] for row in salun.published] == [pytest.approx(0.0222)]


def test_networks_of_other_classes_come_back():
    recipe = to_recipe(partial(TINY, classes=20))
    assert recipe == {"function": "unlearnx.models.resnet9", "arguments": {"width": 2, "classes": 20}}
    assert from_recipe(recipe)()[-1].out_features == 20


def test_many_models_of_one_forget_set_get_the_competitions_score(described, tmp_path):
    study = quick(preset="neurips23", epochs=1, methods=["gradient-ascent"])
    result = study.run([0, 1, 2, 3], tmp_path)
    found = result["quality"]
    assert found["models"] == 4
    assert found["rows"].keys() == {"retrained", "original", "gradient-ascent"}
    for row in found["rows"].values():
        assert sum(row["bins"]) == pytest.approx(1)
        assert 0 <= row["quality"] <= 1
    assert "forgetting quality" in report.page(result).render({**result, **described})
    forget = study.sets(3).samples("forget")
    model = TINY(classes=4)
    model.load_state_dict(torch.load(tmp_path / "trials" / "seed-3" / "retrained.pt", weights_only=True))
    own = SeedTrials(study, 3, RunStore(tmp_path)).confidences("retrained")
    assert torch.allclose(own, logit_confidence(model.eval(), forget), atol=1e-4)


def test_quality_counts_what_is_told_apart():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(5, generator=generator) for _ in range(40)]
    same = {"retain_accuracy": 0.9, "test_accuracy": 0.8}
    rows = {"retrained": draws[:20], "alike": draws[20:], "apart": [d + 90 for d in draws[20:]]}
    worse = {"retain_accuracy": 0.45, "test_accuracy": 0.8}
    accuracies = {"retrained": [same] * 20, "alike": [worse] * 20, "apart": [same] * 20}
    found = quality(rows, accuracies)["rows"]
    assert found["apart"] == {"quality": 0.0, "score": 0.0, "bins": [0, 0, 0, 0, 0, 0, 1]}
    assert found["alike"]["quality"] > 0
    assert found["alike"]["score"] == pytest.approx(found["alike"]["quality"] / 2)
    direct = forgetting_quality(torch.stack(draws[20:]), torch.stack(draws[:20]))
    assert found["alike"]["quality"] == direct.quality
    between = ((direct.epsilon >= 0.5) & (direct.epsilon < 1)).float().mean()
    assert found["alike"]["bins"][1] == pytest.approx(float(between))
