"""Autograd hears of what an op writes in place; a schema's ``Tensor(a!)`` alone does not tell it.

The ops of this module write the tensors of a list, their first argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearnx.ops._call import call, is_watched
from unlearnx.ops._switches import library


def writes(name: str) -> None:
    """Registers that an op of unlearnx writes the tensors of its first argument."""
    op = getattr(torch.ops.unlearnx, name).default

    def kernel(keyset: torch._C.DispatchKeySet, written: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        _check_writable(written)
        below = keyset & torch._C._after_ADInplaceOrView_keyset
        return _told(written, lambda: op.redispatch(below, written, *args, **kwargs))

    library.impl(name, kernel, "ADInplaceOrView", with_keyset=True)


def call_writing(op, written: list[Tensor], *args: Any, **kwargs: Any) -> Any:
    """As ``call``, for an op that :func:`writes`; where nobody else looks at calls, without the way through the kernel.

    To hand a long list to Python again would take longer than to work through short tensors.
    """
    if is_watched(written):
        return call(op, written, *args, **kwargs)
    try:
        _check_writable(written)
    except TypeError:  # it holds something else, which the op refuses by name
        return call(op, written, *args, **kwargs)
    return _told(written, lambda: call(op, written, *args, **kwargs))


def _check_writable(tensors: Sequence[Tensor]) -> None:
    if not torch.is_inference_mode_enabled() and any(map(Tensor.is_inference, tensors)):
        raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed")


def _told(written: Sequence[Tensor], run: Callable[[], Any]) -> Any:
    try:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            result = run()
    except (TypeError, ValueError):  # of arguments, before anything is written
        raise
    except RuntimeError:  # half-way, maybe
        torch.autograd.graph.increment_version(written)
        raise
    torch.autograd.graph.increment_version(written)  # of those that have one
    return result
