"""Running torch's modules with some of the functions that they call replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class FunctionsReplaced(TorchFunctionMode):
    """While active, calls to the functions that are keys of `replacements` go to its values instead.

    The modules' own code around these calls (checks, packing, shapes) stays torch's.
    """

    def __init__(self, replacements: dict[Callable[..., Any], Callable[..., Any]]):
        super().__init__()
        self.replacements = replacements

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.replacements.get(func, func)(*args, **(kwargs or {}))
