"""The cells of the study of methods with nothing tuned: the model has learned what the retrained one does not know."""

import pytest
import torch

from benchmarks.unseen_level import HARD, summary
from benchmarks.untuned import CELLS, Missing, Sources
from benchmarks.untuned.rows import cases_of, rows_of
from benchmarks.untuned.study import judged
from unlearnx.data import load_digits
from unlearnx.metrics import unseen_level
from unlearnx.models import Training, digits_cnn

TRAINED_HERE = [name for name, cell in CELLS.items() if not cell.is_large]
KNOWN = {**CELLS, **{cell.name: cell for cell in HARD}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return Sources(store=tmp_path_factory.mktemp("models"))


def built(name, sources):
    try:
        return KNOWN[name].build(0, sources)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("given", ["held-out data", "nothing"])
@pytest.mark.parametrize("name", TRAINED_HERE)
def test_unseen_level_is_near_that_of_the_retrained_model(name, given, sources):
    case = built(name, sources)
    level = unseen_level(case.model, case.request, case.held if given == "held-out data" else None)
    truth = case.retrained_accuracy["forget"]
    assert level.accuracy.low <= truth <= level.accuracy.high
    assert abs(level.accuracy.estimate - truth) < 0.08


@pytest.mark.parametrize("given", ["held-out data", "nothing"])
@pytest.mark.parametrize("name", [cell.name for cell in HARD])
def test_of_a_forget_set_unlike_what_stays_the_interval_is_wide_and_right(name, given, sources):
    case = built(name, sources)
    level = unseen_level(case.model, case.request, case.held if given == "held-out data" else None)
    assert level.accuracy.low <= case.retrained_accuracy["forget"] <= level.accuracy.high
    assert level.accuracy.high - level.accuracy.low > 0.2
    assert "unlike what stays" in level.basis


@pytest.mark.parametrize("name", [*TRAINED_HERE, *(cell.name for cell in HARD)])
def test_memorised_before_and_not_when_retrained(name, sources):
    cell, case = KNOWN[name], built(name, sources)
    assert case.accuracy["forget"] >= cell.memorised
    assert case.retrained_accuracy["forget"] <= cell.unseen
    assert case.retrained_accuracy["forget"] <= case.accuracy["forget"]
    assert abs(case.accuracy["test"] - case.retrained_accuracy["test"]) < 0.1
    assert not case.model.training
    assert not case.retrained.training
    assert case.seconds > 0
    labels = case.request.dataset.tensors[1][case.request.forget].unique()
    for data in (case.held, case.test):
        assert bool(torch.isin(data[1], labels).any()) != cell.is_class


def test_a_model_is_trained_once_for_a_recipe_and_its_data(tmp_path):
    sources, splits = Sources(store=tmp_path), load_digits(test_share=0.9)
    data = splits.train_x, splits.train_y
    first, seconds = sources.trained(digits_cnn, Training(1), data, 0)
    second, again = sources.trained(digits_cnn, Training(1), data, 0)
    assert seconds == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    others = [(Training(2), data, 0), (Training(1), (data[0], 9 - data[1]), 0), (Training(1), data, 1)]
    for training, samples, seed in others:
        sources.trained(digits_cnn, training, samples, seed)
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_missing_is_said(tmp_path):
    nowhere = Sources(data=None, cifar=None, models=None, store=tmp_path)
    with pytest.raises(Missing, match="UNLEARNX_DATA"):
        CELLS["mlp-user"].build(0, nowhere)
    with pytest.raises(Missing, match="UNLEARNX_MODELS"):
        CELLS["resnet9-random"].build(1, nowhere)
    with pytest.raises(Missing, match="no models of seed 1"):
        CELLS["vgg-class"].build(1, nowhere)


def test_errors_of_the_unseen_level_are_summed_up_by_kind():
    def row(estimate, low, high, truth, **about):
        level = {"estimate": estimate, "low": low, "high": high}
        unknown = {"confidence": None, "loss": None}
        kind = {"given": "nothing", "class": False, "hard": False, **about}
        return {**kind, "unseen": {"accuracy": level, **unknown}, "retrained": {"accuracy": truth, **unknown}}

    lines = summary([row(0.5, 0.4, 0.6, 0.45), row(0.5, 0.4, 0.6, 0.65), row(0.0, 0.0, 0.0, 0.0, **{"class": True})])
    assert [(line["kind"], line["cases"], line["right"]) for line in lines] == [("class", 1, 1), ("samples", 2, 1)]
    assert lines[1]["mean_error"] == pytest.approx(0.1)
    assert lines[1]["mean_width"] == pytest.approx(0.2)


def test_rows_come_back_from_their_file():
    def row(method, seed, **more):
        known = {"cell": "lstm-class", "what": "a class", "is_class": True, "seed": seed, "method": method}
        accuracy = {"before": {"forget": 1.0, "test": 0.9}, "retrained": {"forget": 0.0, "test": 0.8 + seed / 10}}
        found = {**known, **accuracy, "retraining_seconds": 2.0, **more}
        return {**found, **judged(found, is_class=True)}

    after = {"after": {"forget": 0.01, "test": 0.89}, "forgotten": "yes"}
    rows = [row("ssd", 0, **after), row("auto", 0, refused="no"), row("ssd", 1, **after)]
    cases = cases_of(rows)
    assert [(case["seed"], len(case["rows"])) for case in cases] == [(0, 2), (1, 1)]
    assert not {"before", "near"} & cases[0]["rows"][0].keys()
    assert rows_of({"cases": cases}) == rows
    with pytest.raises(ValueError, match="rows of lstm-class, seed 0: are of several models"):
        cases_of([rows[0], {**rows[0], "retraining_seconds": 3.0}])
