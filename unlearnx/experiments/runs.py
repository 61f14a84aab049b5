"""What the runs of all studies have in common."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from unlearnx._files import write_atomically
from unlearnx.methods import Method


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_model(model: nn.Module, file: Path) -> None:
    """Write the state dict of `model`, whole or not at all."""
    write_atomically(file, lambda f: torch.save(model.state_dict(), f))


def slug(name: str) -> str:
    """`name` as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def describe(method: Method) -> str:
    """The method as it is written in code, without what does not matter."""
    changed = {k: v for k, v in vars(method).items() if k not in ("loss_fn", "seed", "progress") and v is not None}
    arguments = ", ".join(f"{k}={v!r}" for k, v in changed.items())
    return f"{type(method).__name__}({arguments})"
