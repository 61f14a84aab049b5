"""Which dtype sums are taken in."""

import torch
from torch import Tensor


def compute_dtype(t: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32
