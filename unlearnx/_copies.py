"""Copies of models. What belongs to the user is neither changed nor shared with another thread while we work on it."""

from __future__ import annotations

import copy
import gc
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._checks import module_label
from unlearnx._closures import rebind
from unlearnx._wrappers import Unwrapped, inner_name

_LOCKS = (type(threading.Lock()), type(threading.RLock()))
# What copies share, as functions and classes always are: code, not state.
_CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, torch.jit.ScriptFunction)
_ATOMS = (str, bytes, int, float, complex, type(None), weakref.ref)


def lent(model: nn.Module) -> nn.Module:
    """The model to call on somebody's data, from any thread: modules of its own around the very same parameters.

    It may be given other parameters for a call, or another mode, while the model is in use elsewhere. Its buffers are
    copies, since a forward pass may write to them, and so are its inputs. Wrappers are taken off, see
    :mod:`unlearnx._wrappers`. A module that its own class does not copy, such as one of TorchScript, is lent itself.
    """
    buffers = {id(b) for b in model.buffers()}
    known = {id(t): t for t in _tensors(model) if id(t) not in buffers}
    try:
        twin = _copied(model, dict(known))
    except Exception:  # this copies objects of the user's, whose code may raise anything
        for _, _, part in _parts(model):
            if (isinstance(part, Tensor) and id(part) not in buffers) or _is_uncopyable(part):
                known[id(part)] = part
            elif isinstance(part, Tensor) and not part.is_leaf:
                known[id(part)] = part.detach().clone()
        try:
            twin = _copied(model, known)
        except Exception:  # likewise
            return model
    if [id(p) for p in twin.parameters()] != [id(p) for p in model.parameters()]:
        return model
    if _own_inputs not in twin._forward_pre_hooks.values():  # of a model that is lent already
        twin.register_forward_pre_hook(_own_inputs, prepend=True, with_kwargs=True)
    return twin


def independent(model: nn.Module) -> nn.Module:
    """A copy with parameters and buffers of its own, wrappers taken off.

    :func:`unlearnx._wrappers.rewrapped` puts them on again.
    Tensors of a graph, such as activations that a forward pass left behind, which ``copy.deepcopy`` refuses, are copied
    without their graphs, locks are made anew, and hooks on parameters kept.

    Raises:
        ValueError: the model holds something that cannot be copied; the message names the attribute.
    """
    try:
        twin = _copied(model, {id(t): t.detach().clone() for t in _tensors(model) if not t.is_leaf})
    except Exception:  # this copies objects of the user's, whose code may raise anything
        twin = _copied_by_parts(model)
    _check_copy(model, twin)
    for parameter, own in zip(model.parameters(), twin.parameters(), strict=True):
        for hook in (parameter._backward_hooks or {}).values():
            if own.requires_grad:
                own.register_hook(hook)
    return twin


def _check_copy(model: nn.Module, twin: nn.Module) -> None:
    """Refuse a copy with other parameters, as classes make that say themselves how they are copied."""
    reason = "cannot be copied, expected a model that can: methods work on a copy; what copies it"
    given, copies = dict(model.named_parameters()), list(twin.parameters())
    if len(given) != len(copies):
        raise ValueError(f"model: {reason} gives {len(copies)} parameters in place of {len(given)}")
    own_rules = any(hasattr(type(module), "__deepcopy__") for module in model.modules())
    for (name, parameter), copied in zip(given.items(), copies, strict=True):
        if parameter.requires_grad and parameter.numel() and parameter.data_ptr() == copied.data_ptr():
            raise ValueError(f"model: {reason} gives the same memory for the parameter {name!r}")
        if own_rules and not torch.equal(parameter, copied):
            raise ValueError(f"model: {reason} gives other values of the parameter {name!r}")
    buffers = {b.data_ptr() for b in twin.buffers() if b.numel()}
    for name, buffer in model.named_buffers():
        if buffer.numel() and buffer.data_ptr() in buffers:
            raise ValueError(f"model: {reason} gives the same memory for the buffer {name!r}")


def merged(model: nn.Module) -> nn.Module:
    """A copy as of :func:`independent`, with an adapter of peft in the weights that it was put on."""
    twin: Any = independent(model)
    return twin.merge_and_unload() if hasattr(twin, "merge_and_unload") else twin


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
    """A deep copy in which objects of the given ids are replaced, and wrappers by what they were made from."""
    for module in reversed(list(model.modules())):  # wrappers may be inside of wrappers
        entry = inner_name(module)
        if entry is not None:
            known[id(module)] = Unwrapped(module, copy.deepcopy(module.get_submodule(entry), known))
    twin = copy.deepcopy(model, known)
    for module in twin.modules():
        rebind(module, known)
    return twin


def _copied_by_parts(model: nn.Module) -> nn.Module:
    """A copy of a model that ``copy.deepcopy`` does not copy; see :func:`independent`."""
    known: dict[int, Any] = {}
    for label, attribute, part in _parts(model):
        if isinstance(part, Tensor):
            if not part.is_leaf:
                known[id(part)] = part.detach().clone()
        elif isinstance(part, _LOCKS):
            known[id(part)] = threading.Lock() if isinstance(part, _LOCKS[0]) else threading.RLock()
        elif isinstance(part, _CODE):
            known[id(part)] = part
        elif _is_uncopyable(part):
            raise ValueError(
                f"model: attribute {attribute!r} of {label} holds a {type(part).__name__}, which cannot be copied, "
                "expected a model that can: methods work on a copy; take the attribute away for the call"
            )
    try:
        return _copied(model, dict(known))
    except Exception as error:
        raise ValueError(
            f"model: {_culprit(model, known)} cannot be copied, expected a model that can: methods work on a copy; "
            f"copying raised {type(error).__name__}: {error}"
        ) from error


def _culprit(model: nn.Module, known: dict[int, Any]) -> str:
    """What of the model cannot be copied, in words."""
    known = {**known, **{id(module): module for module in model.modules()}}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(known))
            except Exception:  # this runs the user's code
                return f"attribute {attribute!r} of {module_label(name, module)}"
    broken = [(name, module) for name, module in model.named_modules() if hasattr(module, "__deepcopy__")]
    return module_label(*(broken or [("", model)])[0])


def _is_uncopyable(part: Any) -> bool:
    """Whether ``copy.deepcopy`` fails at the object itself, rather than at something it holds."""
    if isinstance(part, Tensor) or hasattr(type(part), "__deepcopy__"):
        return False
    try:
        part.__reduce_ex__(4)
    except Exception:  # this may be the user's code
        return True
    return False


def _parts(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Everything that the attributes of its modules hold, at any depth, with the module and the attribute in words."""
    modules = {id(module) for module in model.modules()}
    seen: set[int] = set()
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            stack = [value]
            while stack:
                part = stack.pop()
                if id(part) in seen or id(part) in modules or isinstance(part, _ATOMS):
                    continue
                seen.add(id(part))
                yield module_label(name, module), attribute, part
                if not isinstance(part, (Tensor, *_LOCKS, *_CODE)) and not _is_uncopyable(part):
                    stack += gc.get_referents(part)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """All tensors that its modules hold, as parameters, buffers or otherwise, outside of objects of the user's."""
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
