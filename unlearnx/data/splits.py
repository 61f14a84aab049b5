"""A labelled data set in two parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Splits:
    """Training and test images, normalised float32 (N, C, H, W), labels int64 (N,), and the names of the classes."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: list[str]
