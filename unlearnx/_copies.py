"""Copies of models. What belongs to the user is neither changed nor shared with another thread while we work on it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


class _Uncompiled(nn.Module):
    """A compiled model run as it is written, its parameters under the names they have in the compiled one."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._orig_mod = model
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


def lent(model: nn.Module) -> nn.Module:
    """The model to call on somebody's data, from any thread: modules of its own around the very same tensors.

    It may be given other parameters for a call, or another mode, while the model is in use elsewhere. It works on
    copies of its inputs, which a model may write to. It is not compiled: compiled functions hold on to the parameters
    they were compiled with. A model that cannot be copied, such as one of TorchScript, is lent itself.
    """
    shared = {id(t): t for t in _tensors(model)}
    try:
        twin = _copied(model, shared)
    except Exception:  # this copies objects of the user's, whose code may raise anything
        return model
    if [id(t) for t in twin.parameters()] != [id(t) for t in model.parameters()]:
        return model
    twin.register_forward_pre_hook(_own_inputs, prepend=True, with_kwargs=True)
    return twin


def independent(model: nn.Module) -> nn.Module:
    """A copy with parameters and buffers of its own, compiled where the model as a whole is.

    Tensors of a graph, such as activations that a forward pass left behind, which ``copy.deepcopy`` refuses, are copied
    without their graphs.
    """
    results = {id(t): t.detach().clone() for t in _tensors(model) if not t.is_leaf}
    twin = _copied(model, results)
    return type(model)(twin._orig_mod, model.dynamo_ctx) if isinstance(twin, _Uncompiled) else twin


def _own_inputs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return tuple(_own(a) for a in args), {name: _own(a) for name, a in kwargs.items()}


def _own(value: Any) -> Any:
    """`value` with copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)({k: _own(v) for k, v in value.items()})
    if type(value) in (tuple, list):
        return type(value)(_own(v) for v in value)
    return value


def _copied(model: nn.Module, known: dict[int, Any]) -> nn.Module:
    """A deep copy in which objects of the given ids are replaced, compiled modules by what they were made from."""
    for module in model.modules():
        if _is_compiled(module):
            known[id(module)] = _Uncompiled(copy.deepcopy(module.get_submodule("_orig_mod"), known))
    return copy.deepcopy(model, known)


def _is_compiled(module: nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # importing it takes longer than all of unlearnx
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """All tensors that its modules hold, as parameters, buffers or otherwise."""
    for module in model.modules():
        yield from _held(vars(module).values())


def _held(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _held(v for v in value.values() if not isinstance(v, nn.Module))
        elif isinstance(value, (tuple, list)):
            yield from _held(v for v in value if not isinstance(v, nn.Module))
