"""Calling a model with other values of its parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Values = Mapping[str, Tensor]


def functional_call(
    model: nn.Module, values: Values | tuple[Values, ...], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> Any:
    """As ``torch.func.functional_call``, with tied parameters replaced wherever they are.

    torch replaces them by their names. A module that has several names, such as the embedding that encoder and decoder
    of a T5 share, is replaced and put back once for each of them, which leaves what else is tied to it with old values.
    """
    given = {**values} if isinstance(values, Mapping) else {name: t for part in values for name, t in part.items()}
    if isinstance(model, torch.jit.ScriptModule):
        return torch.func.functional_call(model, given, args, kwargs)  # which says that it cannot
    with _replaced(model, given):
        return model(*args, **(kwargs or {}))


@contextmanager
def _replaced(model: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    new = {id(t): values[name] for name, t in named if name in values}
    entries: list[dict[str, Any]] = [own for module in model.modules() for own in (module._parameters, module._buffers)]
    own = [(entry, key, t) for entry in entries for key, t in entry.items() if t is not None and id(t) in new]
    for entry, key, t in own:
        entry[key] = new[id(t)]
    try:
        yield
    finally:
        for entry, key, t in own:
            entry[key] = t
