"""CIFAR-10, from the official folder, its archive, or folders of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unlearnx.data.cifar_files import Arrays, Load, archive_of, images, kept, normalised, official
from unlearnx.data.splits import Splits

FOLDER = "cifar-10-batches-py"
CHANNEL_MEAN = (125.3, 123.0, 113.9)  # red, green, blue, from 0 to 255
CHANNEL_DEVIATION = (63.0, 62.1, 66.7)


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
    train_limit, test_limit = kept(limit)
    train, test, classes = _read(Path(root))
    scale = CHANNEL_MEAN, CHANNEL_DEVIATION
    return Splits(*normalised(train, train_limit, *scale), *normalised(test, test_limit, *scale), classes)


def _read(root: Path) -> tuple[Arrays, Arrays, list[str]]:
    with official(root, FOLDER, "batches.meta") as load:
        if load is not None:
            return _official(load)
    if (root / "train").is_dir() and (root / "test").is_dir():
        return _image_folders(root)
    raise FileNotFoundError(
        f"{root}: no CIFAR-10 found; expected the folder {FOLDER}, the archive {archive_of(FOLDER)}, or image "
        "folders train/<class>/* and test/<class>/*"
    )


def _official(load: Load) -> tuple[Arrays, Arrays, list[str]]:
    def arrays(names: list[str]) -> Arrays:
        parts = [load(name) for name in names]
        return images(parts), np.concatenate([p[b"labels"] for p in parts])

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
        pixels = np.empty((len(files), 3, 32, 32), np.uint8)
        for i, (file, _) in enumerate(files):
            with Image.open(file) as image:
                if image.size != (32, 32):
                    raise ValueError(f"{file}: is {image.size[0]}x{image.size[1]} pixels, expected 32x32")
                pixels[i] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        return pixels, np.array([k for _, k in files])

    return arrays("train"), arrays("test"), classes
