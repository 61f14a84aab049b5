"""Checks of arguments and models, with errors that name the argument, what was expected and what came."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Params = str | Sequence[str] | None


def select_params(model: nn.Module, params: Params) -> list[str]:
    """Names of the parameters that `params` selects, in the order of ``named_parameters()``.

    Args:
        params: None for all that require gradients, a list of names, or ``"last:K"`` for the last K parameter tensors.

    Raises:
        ValueError: nothing is selected, a name is unknown, or K is out of range.
    """
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


def check_at_least_one(**counts: int | None) -> None:
    """Refuse counts below 1; None stands for no limit.

    Raises:
        ValueError: the message names the argument.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")


def check_at_least_zero(*, unbounded: bool = False, **numbers: float | None) -> None:
    """Refuse negative numbers, NaN, and, unless `unbounded`, infinity; None stands for a default.

    Raises:
        ValueError: the message names the argument.
    """
    for name, value in numbers.items():
        if value is None or (unbounded and value == math.inf):
            continue
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value!r}, expected a {'' if unbounded else 'finite '}number >= 0")


def check_fraction(**fractions: float) -> None:
    """Refuse numbers that are not in [0, 1].

    Raises:
        ValueError: the message names the argument.
    """
    for name, value in fractions.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
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
            return "normalises by the statistics of the batch"
        return "is in train mode: it normalises by the statistics of the batch" if module.training else None
    random = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
    rate = getattr(module, "p", None) if random else getattr(module, "dropout", None)
    if isinstance(module, nn.RReLU):
        rate = 1.0
    elif not random and not isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return None
    return "is in train mode: its output is random" if module.training and rate else None


def check_deterministic(model: nn.Module) -> None:
    """Refuse a model whose output for a sample depends on the other samples, or is random.

    Raises:
        ValueError: a BatchNorm uses batch statistics or a dropout is active; the message names the module.
    """
    for name, module in model.named_modules():
        reason = _reason_samples_interact(module)
        if reason:
            raise ValueError(f"model: {module_label(name, module)} {reason}; call model.eval() first")


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
