"""The files of CIFAR-10 and CIFAR-100 as their authors publish them, and what both make of their images."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Arrays = tuple[np.ndarray, np.ndarray]  # images (N, 3, 32, 32) uint8, labels (N,)
Load = Callable[[str], dict]  # the content of a file, by its name

FEWEST = 10  # training images that a limit leaves
FEWEST_TESTED = 1000


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the official batches: arrays and plain values only, so that no file can run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"})

    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, expected arrays and plain values only")


@contextmanager
def official(root: Path, folder: str, marker: str) -> Iterator[Load | None]:
    """What reads the official files, whether in a folder or in its archive; None where there is neither.

    Args:
        root: the folder, its archive, or a folder that holds either.
        folder: its name; that of the archive follows from it.
        marker: the name of a file that tells the folder.
    """
    found = root if (root / marker).is_file() else root / folder
    archive = root / archive_of(folder) if root.is_dir() else root
    if found.is_dir():
        yield lambda name: _unpickled(folder, name, (found / name).read_bytes())
    elif archive.is_file() and archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            yield lambda name: _unpickled(folder, name, _member(tar, f"{folder}/{name}"))
    else:
        yield None


def archive_of(folder: str) -> str:
    """The name of the archive that is published of a folder: ``cifar-10-python.tar.gz`` of ``cifar-10-batches-py``."""
    return "-".join(folder.split("-")[:2]) + "-python.tar.gz"


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(f"root: the archive has no file {name}")
    return file.read()


def _unpickled(folder: str, name: str, content: bytes) -> dict:
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"{folder}: {name} is damaged ({error})") from error


def images(batches: Sequence[dict]) -> np.ndarray:
    """The images of official batches, uint8 (N, 3, 32, 32)."""
    return np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)


def kept(limit: int | None) -> tuple[int | None, int | None]:
    """How many training and test images are kept where the former are limited.

    Raises:
        ValueError: the limit is below ten.
    """
    if limit is None:
        return None, None
    if limit < FEWEST:
        raise ValueError(f"limit is {limit}, expected at least {FEWEST}")
    return limit, max(FEWEST_TESTED, limit // 5)


def normalised(
    arrays: Arrays, limit: int | None, mean: Sequence[float], deviation: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The first images, float32 with these means and deviations of their channels taken out, and their labels."""
    pixels, labels = (a[:limit] for a in arrays)
    x = torch.from_numpy(np.ascontiguousarray(pixels)).float()
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, deviation))
    return (x - shift) / scale, torch.from_numpy(np.asarray(labels)).long()
