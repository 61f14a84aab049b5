"""What all ops have in common where they are called and where torch asks for the shapes of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from unlearnx._checks import shown
from unlearnx.ops._not_differentiable import recorded

KINDS: dict[str, tuple[type, ...]] = {"int": (int, torch.SymInt), "float": (int, float, torch.SymFloat), "str": (str,)}


def call(op, *args: Any, **kwargs: Any) -> Any:
    """``op(*args, **kwargs)``, an op of ``torch.ops.unlearnx``.

    Raises:
        TypeError: an argument is of a type that the op does not take, in place of torch's account of its schema.
        ValueError: a tensor is sparse, which no kernel takes.
    """
    try:
        return op(*args, **kwargs)
    except (RuntimeError, OverflowError) as error:
        if not torch.compiler.is_compiling():
            _refuse_arguments(op.default._schema, args, kwargs, error)
            _raise_named(error)
        raise


def call_past_autograd(op, *args: Any, **kwargs: Any) -> Any:
    """As :func:`call`; where nobody is to know of the call, past autograd, whose answer in Python costs a small op."""
    values = (*args, *kwargs.values())
    if is_watched(values) or recorded(values):
        return call(op, *args, **kwargs)
    with torch._C._AutoDispatchBelowAutograd():
        return call(op, *args, **kwargs)


def is_watched(values: Sequence[Any]) -> bool:
    """Whether something else than autograd looks at calls with these arguments: a compiler, a mode, a transform."""
    return torch.compiler.is_compiling() or has_torch_function(values) or torch._C._are_functorch_transforms_active()


def _raise_named(error: Exception) -> None:
    """Raises an error of the kind that its message begins with; csrc/common/errors.h says which do."""
    kind, _, message = str(error).partition(": ")
    for named in (TypeError, NotImplementedError, torch.OutOfMemoryError):
        if kind == named.__name__:
            raise named(message) from None


def tensor_list(op: str, argument: str, value: Iterable[Tensor]) -> list[Tensor]:
    """`value` as a list; what it holds is checked where the op refuses it, for lists are long.

    Raises:
        TypeError: it is a single tensor, or no list.
    """
    if isinstance(value, Tensor) or not isinstance(value, Iterable):
        raise TypeError(f"{op}: {argument} is {shown(value)}, expected a list of tensors")
    return list(value)


def register_fake(op: str) -> Callable[[Callable[..., Any]], None]:
    """``torch.library.register_fake`` for an op of unlearnx.

    It is asked as soon as one argument is on the meta device: then the others must be, for their memory is not read and
    what is returned would hold anything.
    """

    def register(shapes: Callable[..., Any]) -> None:
        @torch.library.register_fake(f"unlearnx::{op}")
        def checked(*args: Any, **kwargs: Any) -> Any:
            schema = getattr(torch.ops.unlearnx, op).default._schema
            _check_one_device(op, list(_tensors(_named(schema, args, kwargs))))
            return shapes(*args, **kwargs)

    return register


def _named(schema, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Name, type and value of every argument that was given."""
    for position, argument in enumerate(schema.arguments):
        if position < len(args):
            yield argument.name, str(argument.type), args[position]
        elif argument.name in kwargs:
            yield argument.name, str(argument.type), kwargs[argument.name]


def _tensors(arguments: Iterable[tuple[str, str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for name, _, value in arguments:
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from ((f"{name}[{i}]", t) for i, t in enumerate(value) if isinstance(t, Tensor))


def _check_one_device(op: str, tensors: list[tuple[str, Tensor]]) -> None:
    for name, t in tensors[1:]:
        if t.device != tensors[0][1].device:
            raise ValueError(f"{op}: {name} is on {t.device}, but {tensors[0][0]} is on {tensors[0][1].device}")


def _refuse_arguments(schema, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> None:
    op = schema.name.partition("::")[2]
    arguments = list(_named(schema, args, kwargs))
    for name, kind, value in arguments:
        if kind == "List[Tensor]":
            _refuse_items(op, name, value, error)
            continue
        expected = _expected(kind, value)
        if expected is not None:
            raise TypeError(f"{op}: {name} is {shown(value)}, expected {expected}") from error
    for name, t in _tensors(arguments):
        if t.layout != torch.strided:
            raise ValueError(f"{op}: {name} has layout {t.layout}, expected a strided tensor") from error


def _refuse_items(op: str, argument: str, values: Sequence[Any], error: Exception) -> None:
    for i, t in enumerate(values):
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {argument}[{i}] is {shown(t)}, expected a tensor") from error


def _expected(kind: str, value: Any) -> str | None:
    """What an argument of a type of the schema has to be, where `value` is not."""
    if kind.startswith("Optional["):
        inner = None if value is None else _expected(kind.removeprefix("Optional[").removesuffix("]"), value)
        return inner and f"{inner} or None"
    if kind == "Tensor":
        return None if isinstance(value, Tensor) else "a tensor"
    if kind.startswith("List["):
        item = kind.removeprefix("List[").removesuffix("]")
        held = value if isinstance(value, (tuple, list)) else [value]
        wrong = [v for v in held if _expected(item, v) is not None]
        return f"one or two numbers, each {_expected(item, wrong[0])}" if wrong else None
    if kind == "bool" or kind not in KINDS:
        return None
    if not isinstance(value, KINDS[kind]):
        return {"int": "an integer", "float": "a number", "str": "a string"}[kind]
    if kind == "int" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "an integer of 64 bits"
    return None
