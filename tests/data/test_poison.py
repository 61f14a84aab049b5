import pytest
import torch

from unlearnx.data import Poison, flip_labels, load_digits


def test_budget_pairs_and_seed():
    labels = torch.arange(1000) % 10
    poison = flip_labels(labels, 203, seed=1)
    assert len(poison.indices) == 203
    assert torch.equal(poison.indices, poison.indices.unique())
    assert torch.equal(poison.given, 9 - poison.true)
    assert sorted(poison.true.bincount().tolist()) == [20] * 7 + [21] * 3
    assert torch.equal(poison.indices, flip_labels(labels, 203, seed=1).indices)
    assert not torch.equal(poison.indices, flip_labels(labels, 203, seed=2).indices)


def test_apply_leaves_the_labels_alone():
    labels = torch.arange(100) % 10
    poison = flip_labels(labels, 20)
    poisoned = poison.apply(labels)
    assert (poisoned != labels).nonzero().flatten().tolist() == poison.indices.tolist()
    assert labels.tolist() == [i % 10 for i in range(100)]
    with pytest.raises(ValueError, match="differ from the clean labels"):
        poison.apply(poisoned)
    with pytest.raises(ValueError, match="labels: has 5 entries, but the poison"):
        poison.apply(labels[:5])


def test_odd_number_of_classes_keeps_the_middle():
    assert set(flip_labels(torch.arange(90) % 3, 30, classes=3).true.tolist()) == {0, 2}


def test_save_and_load(tmp_path):
    poison = flip_labels(torch.arange(100) % 10, 20)
    poison.save(tmp_path / "new" / "poison.npz")
    again = Poison.load(tmp_path / "new" / "poison.npz")
    assert torch.equal(again.indices, poison.indices)
    assert torch.equal(again.given, poison.given)


def test_too_large_a_budget():
    with pytest.raises(ValueError, match="budget is 200, of which class 0 has to flip 20 labels, expected 0 to 10"):
        flip_labels(torch.arange(100) % 10, 200)


def test_digits():
    splits = load_digits()
    assert splits.train_x.shape == (1437, 1, 8, 8)
    assert splits.test_x.shape == (360, 1, 8, 8)
    assert splits.test_y.bincount().min() >= 33
    assert splits.train_x.dtype == torch.float32
    assert abs(splits.train_x.mean()) < 0.02
