"""CIFAR-100, from the official folder or its archive, and its twenty superclasses, which make CIFAR-20."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearnx.data.cifar_files import archive_of, images, kept, normalised, official
from unlearnx.data.splits import Splits

FOLDER = "cifar-100-python"
CHANNEL_MEAN = (129.3, 124.1, 112.4)  # red, green, blue, from 0 to 255
CHANNEL_DEVIATION = (68.2, 65.4, 70.4)


@dataclass(frozen=True)
class CIFAR100(Splits):
    """CIFAR-100: the images with one of 100 classes each, and which of twenty superclasses each class belongs to.

    Attributes:
        superclasses: their names.
        superclass: number of the superclass of each class, int64 (100,).

    Example:
        >>> x, y = torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
        >>> of_class = torch.tensor([1, 0, 0])
        >>> splits = CIFAR100(x, y, x, y, ["rocket", "sea", "cloud"], ["natural_scenes", "vehicles_2"], of_class)
        >>> splits.members("natural_scenes"), cifar20(splits).train_y
        (['sea', 'cloud'], tensor([1, 0, 0, 1]))
    """

    superclasses: list[str]
    superclass: Tensor

    def members(self, superclass: str) -> list[str]:
        """The names of the classes of a superclass, in order of their numbers.

        Raises:
            ValueError: there is no such superclass.
        """
        if superclass not in self.superclasses:
            raise ValueError(f"superclass is {superclass!r}, expected one of {', '.join(self.superclasses)}")
        number = self.superclasses.index(superclass)
        return [name for name, own in zip(self.classes, self.superclass.tolist(), strict=True) if own == number]


def load_cifar100(root: str | Path, *, limit: int | None = None) -> CIFAR100:
    """Load CIFAR-100, normalised channel by channel.

    Args:
        root: the official ``cifar-100-python`` folder, ``cifar-100-python.tar.gz``, or a folder that holds either.
        limit: number of training images to keep, the first ones; a fifth as many test images are kept, at least 1,000.

    Raises:
        FileNotFoundError: `root` holds neither.
        ValueError: a file is damaged, or a class belongs to several superclasses.
    """
    train_limit, test_limit = kept(limit)
    with official(Path(root), FOLDER, "meta") as load:
        if load is None:
            raise FileNotFoundError(
                f"{root}: no CIFAR-100 found; expected the folder {FOLDER} or the archive {archive_of(FOLDER)}"
            )
        names, train, test = load("meta"), load("train"), load("test")
    classes, superclasses = ([n.decode() for n in names[key]] for key in (b"fine_label_names", b"coarse_label_names"))
    owners = _superclass_of(len(classes), train, test)
    x, y = zip(*((images([part]), np.asarray(part[b"fine_labels"])) for part in (train, test)), strict=True)
    scale = CHANNEL_MEAN, CHANNEL_DEVIATION
    return CIFAR100(
        *normalised((x[0], y[0]), train_limit, *scale),
        *normalised((x[1], y[1]), test_limit, *scale),
        classes,
        superclasses,
        owners,
    )


def _superclass_of(classes: int, *parts: dict) -> Tensor:
    """The superclass of each class, as the labels of the images say."""
    fine, coarse = (
        torch.tensor([label for part in parts for label in part[key]]) for key in (b"fine_labels", b"coarse_labels")
    )
    owners = torch.zeros(classes, dtype=torch.int64)
    owners[fine] = coarse
    if not torch.equal(owners[fine], coarse):
        wrong = int(fine[owners[fine] != coarse][0])
        raise ValueError(f"{FOLDER}: images of class {wrong} have several superclasses, expected one")
    return owners


def cifar20(splits: CIFAR100) -> Splits:
    """CIFAR-20: the same images with their superclasses as labels.

    Example:
        >>> x, y = torch.zeros(3, 3, 32, 32), torch.tensor([0, 1, 2])
        >>> splits = CIFAR100(x, y, x, y, ["rocket", "sea", "cloud"], ["scenes", "vehicles"], torch.tensor([1, 0, 0]))
        >>> cifar20(splits).test_y, cifar20(splits).classes
        (tensor([1, 0, 0]), ['scenes', 'vehicles'])
    """
    s, owner = splits, splits.superclass
    return Splits(s.train_x, owner[s.train_y], s.test_x, owner[s.test_y], s.superclasses)
