import json

import pytest
import torch
from torch import nn

from unlearnx.experiments.run_store import RunStore, fingerprint, read_trial

RECIPE = {
    "experiment": "forget-class-digits",
    "options": {"root": "here"},
    "request": {"forget_class": 1, "share": None},
    "network": {"function": "unlearnx.models.digits_cnn"},
    "training": {"training": "Training", "arguments": {"epochs": 1}},
    "data": "crc32 00000000",
    "model": "ssd alpha=0.5",
    "method": {"method": "SSD", "arguments": {"alpha": 0.5}},
    "seed": 3,
    "device": "cpu",
    "versions": {"unlearnx": "0", "torch": "2"},
}
ENTRY = {"measures": {"gap": 0.1, "relearn_time": float("nan")}, "seconds": 0.25}


@pytest.fixture
def network():
    return nn.Linear(2, 3)


def test_a_saved_trial_is_found_with_its_weights(tmp_path, network):
    store = RunStore(tmp_path)
    assert store.find(RECIPE) is None
    checkpoint = store.checkpoint(RECIPE)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    saved = store.save(RECIPE, ENTRY, network)
    assert saved["measures"] == {"gap": 0.1, "relearn_time": None}
    assert saved["recipe"] == RECIPE
    assert store.find(RECIPE) == RunStore(tmp_path).find(RECIPE) == saved
    folder = tmp_path / "trials" / "seed-3"
    assert {f.name for f in folder.iterdir()} == {"ssd-alpha-0-5.json", "ssd-alpha-0-5.pt"}
    loaded = store.load(RECIPE, nn.Linear(2, 3).train())
    assert torch.equal(loaded.weight, network.weight)
    assert not loaded.training


@pytest.mark.parametrize("part", ["request", "training", "data", "method", "device", "versions"])
def test_a_trial_of_another_recipe_is_not_found(part, tmp_path, network):
    RunStore(tmp_path).save(RECIPE, ENTRY, network)
    lines = []
    store, other = RunStore(tmp_path, lines.append), {**RECIPE, part: "other"}
    for _ in range(2):
        assert store.find(other) is None
    assert lines == [f"seed 3, ssd alpha=0.5: was made with a different {part}; making it again"]
    assert store.checkpoint(other) != store.checkpoint(RECIPE)
    assert store.find(RECIPE) is not None
    store.save(other, ENTRY, network)
    assert RunStore(tmp_path).find(RECIPE) is None


def test_where_the_data_lie_does_not_matter(tmp_path, network):
    store = RunStore(tmp_path)
    store.save(RECIPE, ENTRY, network)
    moved = {**RECIPE, "options": {"root": "there"}}
    assert fingerprint(moved) == fingerprint(RECIPE)
    assert RunStore(tmp_path).find(moved) is not None


def test_a_trial_without_weights_is_not_finished(tmp_path, network):
    store = RunStore(tmp_path)
    store.save(RECIPE, ENTRY, network)
    store.file(RECIPE).with_suffix(".pt").unlink()
    assert RunStore(tmp_path).find(RECIPE) is None


def test_trials_of_another_run_are_taken_over(tmp_path, network):
    old, new = RunStore(tmp_path / "old"), RunStore(tmp_path / "new")
    new.adopt(RECIPE, old.file(RECIPE).parent)
    assert not new.file(RECIPE).exists()
    saved = old.save(RECIPE, ENTRY, network)
    new.adopt(RECIPE, old.file(RECIPE).parent)
    assert new.find(RECIPE) == saved
    assert torch.equal(new.load(RECIPE, nn.Linear(2, 3)).weight, network.weight)


def test_files_that_are_not_trials(tmp_path):
    file = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_trial(file)
    for text, message in (
        ("{", "expected JSON"),
        ("[]", "expected a trial of a run or its recipe"),
        ('{"seed": 1}', "expected a trial of a run or its recipe"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_trial(file)
    file.write_text(json.dumps(RECIPE))
    assert read_trial(file) == {"recipe": RECIPE}
