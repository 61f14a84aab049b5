import pickle
import tarfile

import numpy as np
import pytest
import torch

from unlearnx.data import cifar20, load_cifar100
from unlearnx.data.cifar100 import CHANNEL_DEVIATION, CHANNEL_MEAN

CLASSES = ["rocket", "sea", "cloud", "tank"]
SUPERCLASSES = ["large_natural_outdoor_scenes", "vehicles_2"]
OF_CLASS = [1, 0, 0, 1]


def part(n, seed):
    """A split in the official layout."""
    random, fine = np.random.default_rng(seed), [k % 4 for k in range(n)]
    return {
        b"data": random.integers(0, 256, (n, 3072), np.uint8),
        b"fine_labels": fine,
        b"coarse_labels": [OF_CLASS[k] for k in fine],
        b"filenames": [b"%05d.png" % k for k in range(n)],
        b"batch_label": b"training batch 1 of 1",
    }


def write(root, train, test):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = {b"fine_label_names": CLASSES, b"coarse_label_names": SUPERCLASSES}
    meta = {key: [name.encode() for name in value] for key, value in names.items()}
    for name, content in {"train": train, "test": test, "meta": meta}.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    write(root, part(40, 0), part(12, 1))
    return root


def test_images_and_both_kinds_of_labels(official):
    splits = load_cifar100(official)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (CHANNEL_MEAN, CHANNEL_DEVIATION))
    pixels = (splits.train_x * scale + shift).round().to(torch.uint8).numpy()
    assert np.array_equal(pixels, part(40, 0)[b"data"].reshape(-1, 3, 32, 32))
    assert splits.test_x.shape == (12, 3, 32, 32)
    assert splits.train_y.tolist() == [k % 4 for k in range(40)]
    assert (splits.classes, splits.superclasses) == (CLASSES, SUPERCLASSES)
    assert splits.superclass.tolist() == OF_CLASS
    assert splits.members("vehicles_2") == ["rocket", "tank"]
    with pytest.raises(ValueError, match="superclass is 'fish', expected one of large_natural"):
        splits.members("fish")


def test_twenty_classes_are_the_superclasses(official):
    splits = load_cifar100(official)
    coarse = cifar20(splits)
    assert coarse.classes == SUPERCLASSES
    assert coarse.train_y.tolist() == part(40, 0)[b"coarse_labels"]
    assert coarse.test_y.tolist() == part(12, 1)[b"coarse_labels"]
    assert coarse.train_x is splits.train_x


def test_archive_and_limit(official, tmp_path):
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(official / "cifar-100-python", "cifar-100-python")
    whole = load_cifar100(official / "cifar-100-python")
    for root in (tmp_path, tmp_path / "cifar-100-python.tar.gz"):
        assert torch.equal(load_cifar100(root, limit=20).train_x, whole.train_x[:20])
    with pytest.raises(ValueError, match="limit is 3"):
        load_cifar100(tmp_path, limit=3)


def test_what_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder cifar-100-python or the archive cifar-100"):
        load_cifar100(tmp_path)
    torn = part(12, 1)
    torn[b"coarse_labels"][4] = 0
    write(tmp_path / "torn", part(40, 0), torn)
    with pytest.raises(ValueError, match="images of class 0 have several superclasses"):
        load_cifar100(tmp_path / "torn")


def test_pickles_cannot_run_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("code ran",)

    write(tmp_path, {**part(40, 0), b"data": Attack()}, part(12, 1))
    with pytest.raises(ValueError, match=r"cifar-100-python: train is damaged \(it refers to [a-z_]+.print"):
        load_cifar100(tmp_path)
