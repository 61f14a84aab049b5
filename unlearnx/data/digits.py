"""Handwritten digits that come with the package: 1,797 images of 8x8 pixels.

They are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, doi:10.24432/C50P49, CC BY 4.0), the same images in the same order as scikit-learn's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearnx._checks import check_seed
from unlearnx.data.splits import Splits

FILE = Path(__file__).with_name("digits.npz")
MEAN, DEVIATION = 4.88, 6.02  # of the pixels, which are counts from 0 to 16


def load_digits(*, test_share: float = 0.2, seed: int = 0) -> Splits:
    """Load the digits, split at random with equal shares of every class.

    Args:
        test_share: share of the images in the test split; both splits get at least one image of every class.
        seed: of the split.

    Raises:
        ValueError: the share leaves a split without images of some class, or the seed is not from 0 to 2**32 - 1.

    Example:
        >>> splits = load_digits(test_share=0.5)
        >>> len(splits.train_y), len(splits.test_y)
        (898, 899)
    """
    check_seed(seed)
    with np.load(FILE) as stored:
        x = (torch.from_numpy(stored["x"]).float().unsqueeze(1) - MEAN) / DEVIATION
        labels = stored["y"].astype(np.int64)
    y = torch.from_numpy(labels)
    train, test = _stratified(labels, test_share, np.random.RandomState(seed))
    return Splits(x[train], y[train], x[test], y[test], [str(c) for c in range(10)])


def _stratified(labels: np.ndarray, test_share: float, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
    """Numbers of the images of both splits: those of ``sklearn.model_selection.train_test_split(stratify=labels)``."""
    members = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    counts = np.array([len(m) for m in members])
    tests = int(np.ceil(test_share * len(labels)))
    if not len(members) <= tests <= len(labels) - len(members):
        raise ValueError(
            f"test_share is {test_share}, expected a share of {len(labels):,} images that leaves both splits "
            f"{len(members)} images or more, one of each class"
        )
    in_train = _shares(counts, len(labels) - tests, random)
    in_test = _shares(counts - in_train, tests, random)
    train, test = [], []
    for own, n_train, n_test in zip(members, in_train, in_test, strict=True):
        shuffled = own[random.permutation(len(own))]
        train.append(shuffled[:n_train])
        test.append(shuffled[n_train : n_train + n_test])
    first, second = (torch.from_numpy(random.permutation(np.concatenate(part))) for part in (train, test))
    return first, second


def _shares(counts: np.ndarray, n: int, random: np.random.RandomState) -> np.ndarray:
    """How many of each class make n in all, in proportion to `counts`; the largest remainders get what is left over."""
    exact = counts / counts.sum() * n
    whole = np.floor(exact)
    missing = int(n - whole.sum())
    remainders = exact - whole
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        (tied,) = np.where(remainders == remainder)
        chosen = random.choice(tied, size=min(len(tied), missing), replace=False)
        whole[chosen] += 1
        missing -= len(chosen)
    return whole.astype(int)
