"""Checks of arguments and models, with errors that name the argument, what was expected and what came."""

from __future__ import annotations

import itertools
import math
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float32).max  # number that is finite in single precision
Params = str | Sequence[str] | None


def select_params(model: nn.Module, params: Params) -> list[str]:
    """Names of the parameters that `params` selects, in the order of ``named_parameters()``.

    Args:
        params: None for all that require gradients, a list of names, or ``"last:K"`` for the last K parameter tensors.

    Raises:
        ValueError: nothing is selected, a name is unknown, or K is out of range.
    """
    if not (params is None or (isinstance(params, (str, Collection)) and not isinstance(params, (bytes, Tensor)))):
        raise TypeError(f"params is {shown(params)}, expected 'last:K', a list of names or None")
    available = [name for name, _ in model.named_parameters()]
    if params is None:
        chosen = [name for name, p in model.named_parameters() if p.requires_grad]
    elif isinstance(params, str):
        kind, _, number = params.partition(":")
        if kind != "last" or not number.isdigit() or not 1 <= int(number) <= len(available):
            raise ValueError(
                f"params is {params!r}, expected 'last:K' with K from 1 to {len(available)}, a list of names or None"
            )
        chosen = available[-int(number) :]
    else:
        unknown = [name for name in params if name not in available]
        if unknown:
            raise ValueError(f"params: the model has no parameter {unknown[0]!r}; it has {', '.join(available)}")
        chosen = [name for name in available if name in set(params)]
    if not chosen:
        reason = "the model has none that requires gradients" if params is None else "the list is empty"
        raise ValueError(f"params: selects no parameter, expected at least one; {reason}")
    return chosen


def is_integer(value: object) -> bool:
    """Whether `value` is an integer of Python or NumPy; a bool is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether `value` is a real number of Python or NumPy; a bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def fits_64_bits(value: int) -> bool:
    """Whether an integer is one of torch's."""
    return -(2**63) <= value < 2**63


def shown(value: object) -> str:
    """A value in the words of messages: its type where the value itself would take lines."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
        return f"a tensor of layout {value.layout} on {value.device}"
    short = value is None or isinstance(value, (str, bytes, numbers.Number, np.generic, torch.dtype, torch.device))
    return repr(value)[:80] if short else f"of type {type(value).__name__}"


def integers(name: str, given: object) -> Tensor:
    """Whole numbers as int64 (N,) on the CPU. Numbers of another kind would name samples that nobody asked for.

    Raises:
        ValueError: `given` holds anything else, or is no collection.
    """
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, (Collection, Tensor, np.ndarray)):
        raise ValueError(f"{name}: is {shown(given)}, expected integers: a list, a range, a set, a tensor")
    values = list(given) if isinstance(given, Set) else given
    try:
        found = torch.as_tensor(values)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected integers, got {str(values)[:80]}") from error
    if found.dtype == torch.bool:
        raise ValueError(f"{name}: is a boolean mask, expected indices; pass mask.nonzero().flatten()")
    if found.numel() and (found.is_floating_point() or found.is_complex()):
        raise ValueError(f"{name}: holds numbers of {found.dtype}, expected integers")
    if found.is_meta or found.layout != torch.strided:
        raise ValueError(
            f"{name}: is a tensor on {found.device} of layout {found.layout}, expected a dense one with values"
        )
    return found.long().flatten().cpu()


@contextmanager
def known_as(**names: str) -> Iterator[None]:
    """Errors that name arguments of an inner function name those of the caller: ``known_as(data="forget")``."""
    try:
        yield
    except (TypeError, ValueError) as error:
        found = re.match(r"(\w+)\b", str(error))
        name = names.get(found[1]) if found else None
        if type(error) not in (TypeError, ValueError) or found is None or name in (None, found[1]):
            raise
        raise type(error)(str(name) + str(error)[found.end() :]) from error


@contextmanager
def named(describe: Callable[[], str]) -> Iterator[None]:
    """What a function of the user's raises comes as a ValueError that starts with what `describe` says.

    Memory that is not there is no fault of an argument.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{describe()}: it raised {type(error).__name__}: {said[:300]}") from error


def check_integer(**values: object) -> None:
    """Refuse what is not an integer.

    Raises:
        TypeError: the message names the argument.
    """
    for name, value in values.items():
        if not is_integer(value):
            raise TypeError(f"{name} is {shown(value)}, expected an integer")
        if not fits_64_bits(value):  # type: ignore[arg-type]
            raise ValueError(f"{name} is {shown(value)}, expected an integer of 64 bits")


def check_at_least_one(**counts: int | None) -> None:
    """Refuse counts below 1; None stands for no limit.

    Raises:
        TypeError, ValueError: one is not an integer, or below 1; the message names the argument.
    """
    for name, value in counts.items():
        if value is not None:
            check_integer(**{name: value})
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")


def check_at_least_zero(*, unbounded: bool = False, **values: float | None) -> None:
    """Refuse negative numbers, NaN, and, unless `unbounded`, infinity; None stands for a default.

    Raises:
        ValueError: the message names the argument.
    """
    for name, value in values.items():
        if value is None:
            continue
        if not is_number(value) or not 0 <= value <= (math.inf if unbounded else LARGEST):
            raise ValueError(f"{name} is {value!r}, expected a {'' if unbounded else 'finite '}number >= 0")


def check_above_zero(**values: float | None) -> None:
    """Refuse zero, and what :func:`check_at_least_zero` refuses.

    Raises:
        ValueError: the message names the argument.
    """
    check_at_least_zero(unbounded=False, **values)
    for name, value in values.items():
        if value == 0:
            raise ValueError(f"{name} is {value!r}, expected a number above zero")


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy's generators do not take.

    Raises:
        ValueError: it is no integer from 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}, expected an integer from 0 to 2**32 - 1")


def check_fraction(**fractions: float) -> None:
    """Refuse numbers that are not in [0, 1].

    Raises:
        ValueError: the message names the argument.
    """
    for name, value in fractions.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}, expected a number from 0 to 1")


def qualified(module: str, parameter: str) -> str:
    """Name of a module's parameter in ``named_parameters()`` of the model."""
    return f"{module}.{parameter}" if module else parameter


def module_label(name: str, module: nn.Module) -> str:
    """A module of a model in the words of messages: its type and name."""
    return f"{type(module).__name__} {name!r}" if name else type(module).__name__


def _reason_samples_interact(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if module.running_mean is None:
            return (
                "normalises by the statistics of the batch in eval mode too, expected one that keeps running "
                "statistics (track_running_stats=True)"
            )
        batch = "is in train mode: it normalises by the statistics of the batch; call model.eval() first"
        return batch if module.training else None
    random = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
    rate = getattr(module, "p", None) if random else getattr(module, "dropout", None)
    if getattr(module, "scale_grad_by_freq", False):
        return "scales gradients by how often a token is in the batch, expected scale_grad_by_freq=False"
    if isinstance(module, nn.RReLU):
        rate = 1.0
    elif not random and not isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return None
    return "is in train mode: its output is random; call model.eval() first" if module.training and rate else None


def check_deterministic(model: nn.Module) -> None:
    """Refuse a model whose output for a sample depends on the other samples, or is random.

    Raises:
        ValueError: a BatchNorm uses batch statistics or a dropout is active; the message names the module.
    """
    for name, module in model.named_modules():
        reason = _reason_samples_interact(module)
        if reason:
            raise ValueError(f"model: {module_label(name, module)} {reason}")


def check_finite(what: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse tensors with NaN or infinite values; `what` says in the message what the tensors hold.

    Raises:
        ValueError: a value is NaN or infinite; the message names its tensor.
    """
    for name, tensor in tensors:
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(f"{what} of {name!r}: {bad} of {tensor.numel()} values are NaN or infinite")


def model_device(model: nn.Module):
    """Device of the model's first parameter or buffer; the CPU where it has neither."""
    return next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0)).device
