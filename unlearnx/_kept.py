"""Trials of models that may write to their own parameters, as constraints on weights do that are kept in forward()."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

IN_PLACE = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__")


class ParametersKept(TorchFunctionMode):
    """Refuses calls of a model that change its parameters, or make modules, and leaves parameters as they are.

    As a context it gives the values to call the model with: the parameters, each as a tensor of its own on the same
    memory. What is written without a change, such as a row of an embedding that is no longer than ``max_norm``, does no
    harm.

    Raises:
        ValueError: a parameter would be changed, or a module was made.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self._model, self._modules = model, {name for name, _ in model.named_modules()}
        self._changed: str | None = None
        self._own = dict(model.named_parameters())
        self._values = {name: p.view_as(p) for name, p in self._own.items()}
        self._names: dict[int | None, str] = {p.untyped_storage().data_ptr(): name for name, p in self._own.items()}

    def __enter__(self) -> dict[str, Tensor]:
        super().__enter__()
        return self._values

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        made = [name for name, _ in self._model.named_modules() if name not in self._modules]
        if made:
            raise ValueError(
                f"model: makes its module {made[0]!r} when it is called, expected all modules to be there; call it "
                "on a batch first"
            )
        for name, value in self._values.items():
            own = self._own[name]
            if value.data_ptr() != own.data_ptr() and not torch.equal(value, own):  # ``weight.data = ...``
                self._changed = name
        if self._changed is not None:
            raise ValueError(
                f"model: changes its parameter {self._changed!r} when called, expected one that only reads it; a "
                "constraint on weights (max_norm of an embedding, renorm_ in forward()) is to be applied to them once, "
                "before"
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        in_place = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE
        if not in_place and kwargs.get("max_norm") is None:
            return func(*args, **kwargs)
        copies: list[tuple[Tensor, Tensor, str]] = []

        def copied(t: Any) -> Any:
            owner = self._names.get(_memory(t)) if isinstance(t, Tensor) else None
            if owner is None:
                return t
            copies.append((t, t.detach().clone(), owner))
            return copies[-1][1]

        on_copies = tree_map(copied, (args, kwargs))
        result = func(*on_copies[0], **on_copies[1]) if copies else None
        changed = [owner for t, copy, owner in copies if not torch.equal(t, copy)]
        if not changed:
            return func(*args, **kwargs)
        self._changed = changed[0]
        return result


def _memory(t: Tensor) -> int | None:
    """Where a tensor is; None of one that stands for others, as inside of torch.func's transforms."""
    try:
        return t.untyped_storage().data_ptr()
    except RuntimeError:
        return None
