"""The mark of loss functions that are known to return the loss of every sample alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_unlearnx_per_sample"


def per_sample(function: F) -> F:
    """Mark a loss function that returns (N,), no entry of which depends on other samples: it need not be checked."""
    setattr(function, _MARK, True)
    return function


def is_per_sample(function: Any) -> bool:
    """Whether a loss function, or what a ``functools.partial`` calls, has the mark."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, _MARK, False)
