"""The cells of the study of methods with nothing tuned: the model has learned what the retrained one does not know."""

import pytest
import torch

from benchmarks.untuned import CELLS, Missing, Sources
from benchmarks.untuned.networks import resnet9
from unlearnx.data import load_digits
from unlearnx.metrics import unseen_level
from unlearnx.models import Training, digits_cnn

TRAINED_HERE = [name for name, cell in CELLS.items() if not cell.is_large]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return Sources(store=tmp_path_factory.mktemp("models"))


def built(name, sources):
    try:
        return CELLS[name].build(0, sources)
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


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_memorised_before_and_not_when_retrained(name, sources):
    cell, case = CELLS[name], built(name, sources)
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


def test_resnet9_has_the_size_of_the_trained_ones():
    assert sum(p.numel() for p in resnet9().parameters()) == 1_646_122
