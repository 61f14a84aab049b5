import pickle
import tarfile

import numpy as np
import pytest
import torch

from unlearnx.data import load_cifar10
from unlearnx.data.cifar10 import CHANNEL_DEVIATION, CHANNEL_MEAN

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def images():
    """Train and test images (N, 3, 32, 32) and labels that are balanced in every prefix."""
    random = np.random.default_rng(0)
    return [(random.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) % 10) for n in (50, 20)]


@pytest.fixture(scope="module")
def official(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    (x, y), test = images
    parts = {f"data_batch_{k + 1}": (x[10 * k : 10 * k + 10], y[10 * k : 10 * k + 10]) for k in range(5)}
    for name, (a, b) in {**parts, "test_batch": test}.items():
        batch = {b"data": a.reshape(len(a), -1), b"labels": b.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [c.encode() for c in CLASSES]}))
    return root


def pixels(x):
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (CHANNEL_MEAN, CHANNEL_DEVIATION))
    return (x * deviation + mean).round().to(torch.uint8).numpy()


def check(splits, images):
    (x, y), (test_x, test_y) = images
    assert np.array_equal(pixels(splits.train_x), x)
    assert np.array_equal(pixels(splits.test_x), test_x)
    assert splits.train_y.tolist() == y.tolist()
    assert splits.test_y.tolist() == test_y.tolist()
    assert splits.classes == CLASSES


def test_official_folder(official, images):
    check(load_cifar10(official), images)
    check(load_cifar10(official / "cifar-10-batches-py"), images)


def test_archive(official, images, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(official / "cifar-10-batches-py", "cifar-10-batches-py")
    check(load_cifar10(archive), images)
    check(load_cifar10(tmp_path), images)


def test_image_folders(images, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for split, (x, y) in zip(("train", "test"), images, strict=True):
        for i, (a, k) in enumerate(zip(x, y, strict=True)):
            file = tmp_path / split / CLASSES[k] / f"{i:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(a.transpose(1, 2, 0)).save(file)
    check(load_cifar10(tmp_path), images)


def test_limit(official):
    splits = load_cifar10(official, limit=30)
    assert len(splits.train_x) == 30
    assert splits.train_y.bincount().tolist() == [3] * 10
    with pytest.raises(ValueError, match="limit is 3"):
        load_cifar10(official, limit=3)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 found; expected the folder cifar-10-batches-py"):
        load_cifar10(tmp_path)


def test_pickles_cannot_run_code(official, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (official / "cifar-10-batches-py").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    class Attack:
        def __reduce__(self):
            return print, ("code ran",)

    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Attack(), b"labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged \(it refers to builtins.print"):
        load_cifar10(tmp_path)


@pytest.mark.slow
def test_real_data(real_data, tmp_path):
    """The official layout of the real images, written by the data's own tool."""
    import subprocess
    import sys

    subprocess.run([sys.executable, real_data / "load.py", "cifar10", tmp_path], check=True)
    splits = load_cifar10(tmp_path, limit=5000)
    assert splits.train_x.shape == (5000, 3, 32, 32)
    assert splits.test_x.shape == (1000, 3, 32, 32)
    assert splits.classes == CLASSES
    assert splits.train_x.mean().abs() < 0.05
    assert abs(splits.train_x.std().item() - 1) < 0.05
