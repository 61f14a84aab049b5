"""CIFAR-10, from the official folder, its archive, or folders of images."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearnx.data.splits import Splits

FOLDER = "cifar-10-batches-py"
CHANNEL_MEAN = (125.3, 123.0, 113.9)  # red, green, blue, from 0 to 255
CHANNEL_DEVIATION = (63.0, 62.1, 66.7)

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, 3, 32, 32) uint8, labels (N,)


def load_cifar10(root: str | Path, *, limit: int | None = None) -> Splits:
    """Load CIFAR-10, normalised channel by channel.

    Args:
        root: one of the official ``cifar-10-batches-py`` folder or a folder that holds it;
            ``cifar-10-python.tar.gz`` or a folder that holds it; a folder ``train/<class>/*`` and
            ``test/<class>/*`` of 32x32 images (needs Pillow).
        limit: number of training images to keep, the first ones; a fifth as many test images are kept, at least 1,000.

    Raises:
        FileNotFoundError: `root` holds none of the three layouts; the message lists them.
        ValueError: a file is damaged, or the two splits have different classes.
    """
    root = Path(root)
    if limit is not None and limit < 10:
        raise ValueError(f"limit is {limit}, expected at least 10")
    test_limit = None if limit is None else max(1000, limit // 5)
    train, test, classes = _read(root)
    return Splits(*_normalised(train, limit), *_normalised(test, test_limit), classes)


def _read(root: Path) -> tuple[Arrays, Arrays, list[str]]:
    folder = root if (root / "batches.meta").is_file() else root / FOLDER
    if folder.is_dir():
        return _official(lambda name: (folder / name).read_bytes())
    archive = root / "cifar-10-python.tar.gz" if root.is_dir() else root
    if archive.is_file() and archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            return _official(lambda name: _member(tar, name))
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _image_folders(root)
    raise FileNotFoundError(
        f"{root}: no CIFAR-10 found; expected the folder {FOLDER}, the archive cifar-10-python.tar.gz, or image "
        "folders train/<class>/* and test/<class>/*"
    )


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(f"{FOLDER}/{name}")
    if file is None:
        raise ValueError(f"root: the archive has no file {FOLDER}/{name}")
    return file.read()


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the official batches: arrays and plain values only, so that no file can run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"})

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, expected arrays and plain values only")


def _official(read: Callable[[str], bytes]) -> tuple[Arrays, Arrays, list[str]]:
    def load(name: str) -> dict:
        try:
            return _ArrayUnpickler(io.BytesIO(read(name)), encoding="bytes").load()
        except (pickle.UnpicklingError, EOFError, KeyError) as error:
            raise ValueError(f"CIFAR-10: {name} is damaged ({error})") from error

    def arrays(names: list[str]) -> Arrays:
        parts = [load(name) for name in names]
        images = np.concatenate([p[b"data"] for p in parts]).reshape(-1, 3, 32, 32)
        return images, np.concatenate([p[b"labels"] for p in parts])

    classes = [c.decode() for c in load("batches.meta")[b"label_names"]]
    return arrays([f"data_batch_{k}" for k in range(1, 6)]), arrays(["test_batch"]), classes


def _image_folders(root: Path) -> tuple[Arrays, Arrays, list[str]]:
    from PIL import Image

    classes = sorted(f.name for f in (root / "train").iterdir() if f.is_dir())

    def arrays(split: str) -> Arrays:
        found = sorted(f.name for f in (root / split).iterdir() if f.is_dir())
        if found != classes:
            raise ValueError(f"{root}: {split} has the classes {found}, expected {classes} as in train")
        files = [(f, k) for k, name in enumerate(classes) for f in (root / split / name).iterdir()]
        files.sort(key=lambda pair: pair[0].name)  # so that the first `limit` files are of all classes
        images = np.empty((len(files), 3, 32, 32), np.uint8)
        for i, (file, _) in enumerate(files):
            with Image.open(file) as image:
                if image.size != (32, 32):
                    raise ValueError(f"{file}: is {image.size[0]}x{image.size[1]} pixels, expected 32x32")
                images[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        return images, np.array([k for _, k in files])

    return arrays("train"), arrays("test"), classes


def _normalised(arrays: Arrays, limit: int | None) -> tuple[Tensor, Tensor]:
    images, labels = (a[:limit] for a in arrays)
    x = torch.from_numpy(np.ascontiguousarray(images)).float()
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (CHANNEL_MEAN, CHANNEL_DEVIATION))
    return (x - mean) / deviation, torch.from_numpy(np.asarray(labels)).long()
