"""The handwritten digits that come with scikit-learn: 1,797 images of 8x8 pixels."""

from __future__ import annotations

import torch

from unlearnx.data.splits import Splits


def load_digits(*, test_share: float = 0.2, seed: int = 0) -> Splits:
    """Load the digits, split at random with equal shares of every class.

    Args:
        test_share: share of the images in the test split.
        seed: of the split.

    Raises:
        ImportError: scikit-learn is missing; it comes with ``unlearnx[experiments]``.

    Example:
        >>> splits = load_digits(test_share=0.5)
        >>> len(splits.train_y), len(splits.test_y)
        (898, 899)
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("load_digits needs scikit-learn: pip install 'unlearnx[experiments]'") from error
    x, y = load(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=test_share, random_state=seed, stratify=y)

    def images(rows):
        return (torch.from_numpy(rows).float().view(-1, 1, 8, 8) - 4.88) / 6.02

    def labels(rows):
        return torch.from_numpy(rows).long()

    classes = [str(c) for c in range(10)]
    return Splits(images(train_x), labels(train_y), images(test_x), labels(test_y), classes)
