"""A labelled dataset, split into training and test data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Splits:
    """Training and test images, normalised float32 (N, C, H, W), labels int64 (N,), and the names of the classes.

    Example:
        >>> splits = load_digits()
        >>> splits.train_x.shape, splits.test_x.shape, splits.classes[:3]
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]), ['0', '1', '2'])
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: list[str]
