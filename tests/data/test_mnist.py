import numpy as np
import pytest
import torch

from unlearnx.data import load_mnist, noisy_inputs, noisy_labels


def write(file, images=None, labels=None):
    images = np.zeros((20, 28, 28), np.uint8) if images is None else images
    np.savez(file, images=images, labels=np.arange(20, dtype=np.uint8) % 10 if labels is None else labels)
    return file


def test_real_digits(real_data):
    splits = load_mnist(real_data)
    assert splits.train_x.shape == (8000, 1, 28, 28)
    assert splits.test_x.shape == (2000, 1, 28, 28)
    assert splits.train_y.bincount().min() > 600
    assert splits.test_y.bincount().min() > 150
    assert abs(splits.train_x.mean()) < 0.05
    assert abs(splits.train_x.std() - 1) < 0.05
    assert splits.classes[7] == "7"


def test_split_keeps_images_with_their_labels(tmp_path):
    images = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None], (20, 28, 28))
    file = write(tmp_path / "mnist-10k.npz", images)
    splits = load_mnist(tmp_path, test_share=0.25, seed=3)
    x, y = torch.cat([splits.train_x, splits.test_x]), torch.cat([splits.train_y, splits.test_y])
    assert len(splits.test_x) == 5
    number = ((x[:, 0, 0, 0] - x.min()) / (x.max() - x.min()) * 19).round().long()
    assert torch.equal(number % 10, y)
    assert number.unique().tolist() == list(range(20))
    assert torch.equal(load_mnist(file, test_share=0.25, seed=3).train_x, splits.train_x)
    assert not torch.equal(load_mnist(file, test_share=0.25).train_x, splits.train_x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((20, 28, 28))}, "images float64"),
        ({"images": np.zeros((20, 32, 32), np.uint8)}, r"shape \[20, 32, 32\]"),
        ({"labels": np.zeros(19, np.uint8)}, r"labels of shape \[19\]"),
        ({"labels": np.full(20, 10)}, "integers from 0 to 9"),
        ({"labels": np.zeros(20)}, "integers from 0 to 9"),
    ],
)
def test_refuses_other_arrays(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_mnist(write(tmp_path / "x.npz", **change))


def test_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mnist-10k\.npz"):
        load_mnist(tmp_path)
    (tmp_path / "x.npz").write_text("no archive")
    with pytest.raises(ValueError, match="expected arrays named images and labels"):
        load_mnist(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match="expected arrays named images and labels"):
        load_mnist(tmp_path / "y.npz")
    with pytest.raises(ValueError, match=r"test_share is 1\.0"):
        load_mnist(write(tmp_path / "z.npz"), test_share=1.0)


def test_noisy_labels_are_wrong_and_spread_evenly():
    labels = torch.arange(10_000) % 5
    poison = noisy_labels(labels, 0.3, classes=5, seed=1)
    assert len(poison.indices) == 3000
    assert torch.equal(poison.indices, poison.indices.unique())
    assert (poison.given != poison.true).all()
    pairs = (5 * poison.true + poison.given).bincount(minlength=25)[~torch.eye(5, dtype=torch.bool).flatten()]
    assert pairs.min() > 100  # 150 expected
    assert pairs.max() < 200
    given = poison.apply(labels)
    assert (given != labels).nonzero().flatten().tolist() == poison.indices.tolist()
    assert torch.equal(noisy_labels(labels, 0.3, classes=5, seed=1).given, poison.given)
    assert not torch.equal(noisy_labels(labels, 0.3, classes=5, seed=2).indices, poison.indices)


def test_noisy_inputs_of_a_share():
    x = torch.randn(200, 1, 6, 6)
    before = x.clone()
    noisy, indices = noisy_inputs(x, 0.25, deviation=3.0, seed=1)
    assert torch.equal(x, before)
    assert len(indices) == 50
    assert (noisy != x).flatten(1).any(1).nonzero().flatten().tolist() == indices.tolist()
    assert float((noisy - x)[indices].std()) == pytest.approx(3.0, rel=0.05)
    assert torch.equal(noisy_inputs(x, 0.25, deviation=3.0, seed=1)[0], noisy)


def test_random_state_stays():
    state = torch.get_rng_state()
    noisy_labels(torch.arange(20) % 10, 0.5)
    noisy_inputs(torch.zeros(20, 3), 0.5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_refuses_shares(share):
    with pytest.raises(ValueError, match="share is"):
        noisy_labels(torch.zeros(5, dtype=torch.int64), share)
    with pytest.raises(ValueError, match="share is"):
        noisy_inputs(torch.zeros(5, 2), share)


def test_refuses_noise_that_does_not_fit():
    with pytest.raises(ValueError, match="classes is 1"):
        noisy_labels(torch.zeros(5, dtype=torch.int64), 0.5, classes=1)
    with pytest.raises(ValueError, match="deviation is -1"):
        noisy_inputs(torch.zeros(5, 2), 0.5, deviation=-1)
