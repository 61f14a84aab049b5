"""Functions that were put on a model from outside and hold it: in a copy they have to hold the copy."""

from __future__ import annotations

import dis
from types import CellType, FunctionType
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def rebind(module: nn.Module, copies: dict[int, Any]) -> None:
    """Let a copied module's hooks, and a ``forward`` that was assigned to it, refer to copies.

    Args:
        copies: the copies by the ids of what they were made from, such as the memo of ``copy.deepcopy``.

    Raises:
        ValueError: ``forward`` knows what was copied by a global name, which it shares with the original.
    """
    own = vars(module)
    if isinstance(own.get("forward"), FunctionType):
        _check_globals(own["forward"], copies)
        own["forward"] = _rebound(own["forward"], copies)
    for name in _HOOKS:
        for key, hook in own[name].items():
            own[name][key] = _rebound(hook, copies)


def hooks_hold(model: nn.Module) -> bool:
    """Whether a hook of a module refers to modules of the model by its closure or its defaults."""
    others: dict[int, Any] = {id(module): None for module in model.modules()}
    hooks = (hook for module in model.modules() for name in _HOOKS for hook in vars(module)[name].values())
    return any(_rebound(hook, others) is not hook for hook in hooks)


def _rebound(value: Any, copies: dict[int, Any], seen: frozenset[int] = frozenset()) -> Any:
    """The copy of a value; of a function, one with copies in its closure and its defaults where it has any there."""
    if not isinstance(value, FunctionType):
        return copies.get(id(value), value)
    if id(value) in seen:
        return value
    seen |= {id(value)}
    old = [_content(cell) for cell in value.__closure__ or ()]
    contents = [_rebound(content, copies, seen) for content in old]
    defaults = tuple(_rebound(v, copies, seen) for v in value.__defaults__ or ())
    named = {name: _rebound(v, copies, seen) for name, v in (value.__kwdefaults__ or {}).items()}
    before = [*old, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if all(a is b for a, b in zip([*contents, *defaults, *named.values()], before, strict=True)):
        return value
    closure = tuple(
        cell if a is b else CellType(b) for cell, a, b in zip(value.__closure__ or (), old, contents, strict=True)
    )
    made = FunctionType(value.__code__, value.__globals__, value.__name__, defaults or None, closure or None)
    made.__kwdefaults__ = named or None
    made.__dict__.update(vars(value))
    return made


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _check_globals(function: FunctionType, copies: dict[int, Any]) -> None:
    for instruction in dis.get_instructions(function):
        value = function.__globals__.get(instruction.argval) if instruction.opname == "LOAD_GLOBAL" else None
        if isinstance(value, nn.Module) and copies.get(id(value), value) is not value:
            raise ValueError(
                f"forward() was assigned a function that calls the model by its global name {instruction.argval!r}; "
                "assign types.MethodType(function, module), with the module as the first argument"
            )
