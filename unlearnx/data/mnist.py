"""Ten thousand handwritten digits of MNIST in one file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from unlearnx.data.splits import Splits

FILE_NAME = "mnist-10k.npz"
PIXEL_MEAN, PIXEL_DEVIATION = 33.3, 78.6  # over all pixels of MNIST, from 0 to 255


def load_mnist(path: str | Path, *, test_share: float = 0.2, seed: int = 0) -> Splits:
    """Load the digits, normalised and split at random: by default 8,000 to train on and 2,000 to test with.

    Args:
        path: ``mnist-10k.npz``, or a folder that holds it: images (N, 28, 28) uint8 and labels (N,), 0 to 9.
        test_share: share of the images in the test split.
        seed: of the split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or the share leaves one of the splits empty.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is not a file, expected {FILE_NAME} with images and labels of MNIST")
    images, labels = _read(file)
    n = len(labels)
    tested = round(test_share * n)
    if not 0 < tested < n:
        raise ValueError(
            f"test_share is {test_share}, expected a share of {n:,} images that leaves neither split empty"
        )
    x = (torch.from_numpy(images).float().unsqueeze(1) - PIXEL_MEAN) / PIXEL_DEVIATION
    y = torch.from_numpy(labels.astype(np.int64))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    test, train = order[:tested], order[tested:]
    return Splits(x[train], y[train], x[test], y[test], [str(c) for c in range(10)])


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (KeyError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file}: expected arrays named images and labels, which could not be read ({error})"
        ) from error
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{file}: holds images {images.dtype} of shape {list(images.shape)} and labels of shape "
            f"{list(labels.shape)}, expected images uint8 (N, 28, 28) and labels (N,)"
        )
    if labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels <= 9)).all():
        raise ValueError(f"{file}: holds other labels ({labels.dtype}) than expected: integers from 0 to 9")
    return images, labels
