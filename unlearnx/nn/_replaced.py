"""Modules of torch with other functions underneath."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class Replaced(TorchFunctionMode):
    """Calls others in place of some functions of torch: what a module does around them stays torch's own."""

    def __init__(self, others: dict[Callable[..., Any], Callable[..., Any]]):
        super().__init__()
        self.others = others

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.others.get(func, func)(*args, **(kwargs or {}))
