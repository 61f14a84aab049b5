"""What tells a model from any other, and from itself after training."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, shapes, dtypes and values of a model's parameters and buffers."""
    found = hashlib.sha256()
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        found.update(f"{name} {list(t.shape)} {t.dtype};".encode())
        found.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
