"""The parameters that a method may change, read and written together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from unlearnx._checks import qualified
from unlearnx._vectors import Vector

T = TypeVar("T")


class ChosenParameters:
    """Reads and writes the chosen parameters of a model."""

    def __init__(self, model: nn.Module, names: list[str]):
        own = dict(model.named_parameters())
        self.params = {name: own[name] for name in names}

    def read(self) -> Vector:
        """Copies of their values."""
        return {name: p.detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def write(self, start: Vector, direction: Vector, step: float) -> None:
        """Set the parameters to ``start - step * direction``."""
        for name, p in self.params.items():
            # For step 0, start itself: 0 * direction is NaN where the direction is infinite.
            alpha = -min(step, torch.finfo(torch.promote_types(p.dtype, torch.float32)).max)
            p.copy_(torch.add(start[name], direction[name], alpha=alpha) if step else start[name])

    def after(self, measure: Callable[[], T], start: Vector, direction: Vector, step: float) -> T:
        """What `measure` says after a step."""
        self.write(start, direction, step)
        return measure()


def last_layer(model: nn.Module) -> list[str]:
    """Names of the parameters that require gradients of the last module that has any of its own."""
    for name, module in reversed(list(model.named_modules())):
        own = [qualified(name, p) for p, tensor in module.named_parameters(recurse=False) if tensor.requires_grad]
        if own:
            return own
    return []
