"""The dtype in which ops compute sums."""

import torch
from torch import Tensor


def compute_dtype(t: Tensor) -> torch.dtype:
    """float64 for float64 tensors, float32 for all narrower dtypes."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32
