"""Which models are taken, and whether a model gives the same outputs for a sample whenever it is called."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from unlearnx._batches import Nest, count, has_rows, take, taken_apart, tensors
from unlearnx._checks import module_label
from unlearnx._random import random_states

TOLERANCE = 1e-3  # of outputs for the same samples, relative to the largest
ROUNDING = 1e-2  # the same where other kernels may have computed them, as for another number of samples
HALF_ROUNDING = 5e-2  # the same in half precision
TRIES = 64  # of a model that draws random numbers: what it does in one pass of 20 is found with probability 0.96

Buffers = dict[str, Tensor]


def check_model(model: nn.Module) -> None:
    """Refuse models that cannot be run with other parameters, or differentiated.

    Raises:
        TypeError: it is not a module.
        ValueError: it has none of its values in memory, or not as real numbers, or is not written in Python.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is of type {type(model).__name__}, expected a torch.nn.Module")
    check_gradients_possible()
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"model: {module_label(name, module)} is compiled by torch.jit, which cannot be run with other "
                "parameters, expected the module that it was made from; load its state dict into that"
            )
        if ".quantized" in type(module).__module__ and type(module).__module__.startswith("torch."):
            raise ValueError(
                f"model: {module_label(name, module)} is quantised, which rules out gradients, expected the module in "
                "floating point that it was made from"
            )
    for name, parameter in model.named_parameters():
        reason = _reason_unusable(parameter)
        if reason:
            raise ValueError(f"model: parameter {name!r} {reason}")
    check_has_values("model", model)


def check_has_values(argument: str, model: nn.Module) -> None:
    """Refuse models whose parameters or buffers have no values yet.

    Raises:
        ValueError: one has none; the message starts with the name of the argument.
    """
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, t in named:
            if is_lazy(t) or t.is_meta:
                raise ValueError(f"{argument}: {kind} {name!r} {_reason_unusable(t)}")


def check_gradients_possible() -> None:
    """Refuse calls inside of ``torch.inference_mode()``.

    Raises:
        ValueError: this is one.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "model: is called inside torch.inference_mode(), which rules out gradients, expected a call outside of it; "
            "torch.no_grad() does no harm"
        )


def _reason_unusable(t: Tensor) -> str | None:
    sharded = sys.modules.get("torch.distributed.tensor")
    if is_lazy(t):
        return "is not initialised yet, expected values; call the lazy model on a batch first"
    if t.is_meta:
        return "is on the meta device and has no values, expected them in memory; load the weights first"
    if sharded is not None and isinstance(t, sharded.DTensor):
        return "is a DTensor, spread over processes, expected a whole one in each"
    if t.is_complex():
        return f"is of {t.dtype}, expected real numbers; hold real and imaginary parts as two parameters"
    if t.is_inference():
        return (
            "was made inside torch.inference_mode(), which rules out gradients, expected an ordinary one; pass "
            "copy.deepcopy(model), called outside of it"
        )
    return None


def check_repeatable(call: Callable[[Nest, Buffers], Any], model: nn.Module, x: Nest, device: torch.device) -> Any:
    """Refuse a model whose output for a sample depends on more than the sample and the parameters.

    Args:
        call: the model with buffers of its own, to which it may write.
        model: the same, for its attributes.
        x: samples.
        device: that it is on.

    Returns:
        Its outputs for the samples.

    Raises:
        ValueError: outputs are random, or depend on what was given before or along with the sample.
    """

    def buffers() -> Buffers:
        return {name: b.clone() for name, b in model.named_buffers()}

    before = random_states(device)
    written = buffers()
    first = call(x, written)
    drawn = random_states(device) != before or any(map(_has_generator, model.modules()))
    if not all_finite(first):
        return first
    n, one = count(x), slice(0, 1)
    alone = call(take(x, one), buffers()) if n > 1 else first
    single, together = _of_samples(alone, first, one, n)
    # A sample alone that gives what it gave among others shows both, that outputs repeat and that samples do not mix.
    again = TRIES if drawn else 0 if n > 1 and alike(single, together) else 2
    for _ in range(again):
        if not alike(call(x, buffers()), first):
            raise ValueError(
                "model: gave other outputs for the same samples when called again, expected the same; a dropout "
                "outside of a module, or a random layer in train mode, needs to be off"
            )
    changed = [name for name, b in written.items() if b._version]
    if changed and not alike(call(x, written), first):
        raise ValueError(
            f"model: writes to its buffer {changed[0]!r} when called, and gives other outputs the next time, expected "
            "the same; call model.eval() first, or let the forward pass only read the buffer in eval mode"
        )
    apart = alike(single, together, ROUNDING)
    if apart and n > 1:  # the others without the first, which may be the one that they depend on
        others = slice(1, n)
        apart = alike(*_of_samples(call(take(x, others), buffers()), first, others, n), ROUNDING)
    if not apart:
        raise ValueError(
            "model: gave another output for a sample alone than together with others, expected one that depends on "
            "the sample only; call model.eval() first, and let no layer use statistics of the batch"
        )
    return first


def _of_samples(part: Any, whole: Any, chosen: slice, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of some samples in outputs for these, and for all `n`; not those that are the same for all."""
    (a, _), (b, _), k = taken_apart(part), taken_apart(whole), len(range(n)[chosen])
    if len(a) != len(b):
        return [t for t in a if isinstance(t, Tensor)], [t for t in b if isinstance(t, Tensor)]
    places = [i for i, (s, t) in enumerate(zip(a, b, strict=True)) if has_rows(s, k) and has_rows(t, n)]
    return [a[i] for i in places], [b[i][chosen] for i in places]


def alike(a: Any, b: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two outputs are the same but for rounding: tensors, or nests of the same number of them."""
    first, second = list(tensors(a)), list(tensors(b))
    return len(first) == len(second) and all(_close(s, t, tolerance) for s, t in zip(first, second, strict=True))


def all_finite(output: Any) -> bool:
    """Whether all numbers in a tensor or a nest of them are finite."""
    return all(bool(t.isfinite().all()) for t in tensors(output))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape or not a.numel():
        return a.shape == b.shape
    tolerance = HALF_ROUNDING if a.dtype in (torch.float16, torch.bfloat16) else tolerance
    a, b = (t.detach().double() for t in (a, b))
    return torch.allclose(a, b, 0, tolerance * float(b.abs().max()), equal_nan=True)


def _has_generator(module: nn.Module) -> bool:
    kinds = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
    return any(isinstance(value, kinds) for value in _flat(vars(module).values()))


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)
