"""Calls of what the user gives, a model and a loss: what goes wrong in them is said of the argument that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._batches import Nest, call, changed, count, described, moved, rows, take, tensors
from unlearnx._checks import check_deterministic, known_as, model_device, named
from unlearnx._copies import lent
from unlearnx._data import Data
from unlearnx._functional import functional_call
from unlearnx._graphs import nodes
from unlearnx._kept import ParametersKept
from unlearnx._losses import Loss, SampleLoss
from unlearnx._models import Buffers, alike, all_finite, check_model, check_repeatable
from unlearnx._modes import modes_kept
from unlearnx._random import random_states, undisturbed
from unlearnx._remembered import Remembered
from unlearnx._sources import Samples

PROBED = 3  # samples that a model is tried on
_repeatable: Remembered[bool] = Remembered()


def run(model: Callable[..., Any], x: Nest) -> Any:
    """What a model returns for samples, with a row for each.

    Raises:
        ValueError: the model does not take the samples, or returns something else; the message names the argument.
    """
    with named(lambda: f"data: expected samples that the model takes, got x of {described(x)}"):
        output = call(model, x)
    return rows(output, count(x))


def check_call(
    model: nn.Module,
    loss_fn: Loss | None,
    data: Data,
    *,
    name: str = "data",
    deterministic: bool = True,
    penalty: bool = False,
) -> None:
    """Try the model and the loss on a few samples, without a trace in either, nor in torch's random numbers.

    A model that has been found to give the same outputs for the same samples is not tried for that again: the loss then
    gets the outputs of one sample.

    Args:
        name: of the argument that `data` is.
        deterministic: refuse a model that gives other outputs for the same samples, or whose samples interact.
        penalty: let the loss depend on the parameters by other ways than the output.

    Raises:
        TypeError: the model is no module, or the loss no function.
        ValueError: they do not fit together, or are refused.
    """
    check_model(model)
    loss = None if loss_fn is None else SampleLoss(loss_fn)
    if deterministic:
        check_deterministic(model)
    device = model_device(model)
    with known_as(data=name):
        x, y = (moved(changed(t, Tensor.detach), device) for t in Samples(data).read(slice(0, PROBED)))
        _try(model, loss, x, y, device, deterministic=deterministic, penalty=penalty)


def _try(
    model: nn.Module,
    loss: SampleLoss | None,
    x: Nest,
    y: Nest,
    device: torch.device,
    *,
    deterministic: bool,
    penalty: bool,
) -> None:
    twin = lent(model)
    tried: list[Any] = []
    known = False  # whether the model has been tried before

    def output(x: Nest, buffers: Buffers) -> Any:
        with ParametersKept(twin) as values:
            found = run(lambda *args, **named: functional_call(twin, {**values, **buffers}, args, named), x)
        if deterministic and not known:
            _refuse_reentrant(found)
        return changed(found, Tensor.detach)

    with torch.enable_grad(), undisturbed(device), modes_kept(twin):
        if deterministic:

            def repeatable() -> bool | None:
                tried.append(check_repeatable(output, twin, x, device))
                return all_finite(tried[0]) or None  # otherwise nothing was compared

            _repeatable.of(model, x, None, repeatable)
            known = not tried
            if known:
                x, y = take(x, slice(0, 1)), take(y, slice(0, 1))
            first = output(x, {}) if known else tried[0]
        else:
            twin.eval()  # a BatchNorm in train mode may not take as few samples
            first = output(x, {})
    if loss is None:
        return
    with torch.enable_grad(), undisturbed(device):
        given = changed(first, lambda t: t.requires_grad_().clone() if t.is_floating_point() else t)
        before = random_states(device)
        value = loss.value(given, y)
        if random_states(device) != before and not alike(loss.value(given, y), value):
            raise ValueError(
                "loss_fn: gave another value for the same outputs and labels when called again, expected the same; "
                "draw random numbers before, as part of the data"
            )
    reached = _leaves(value)
    if not reached:
        raise ValueError(
            "loss_fn: returned a value without a gradient, such as a count or what was detached, expected one that "
            "depends on the outputs"
        )
    if not penalty and reached & {id(p) for p in model.parameters()}:
        raise ValueError(
            "loss_fn: depends on the model's parameters themselves, as a penalty on weights does, expected a function "
            "of outputs and labels alone"
        )


def _refuse_reentrant(output: Any) -> None:
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes(tensors(output))):
        raise ValueError(
            "model: calls torch.utils.checkpoint with use_reentrant=True, which torch.autograd.grad cannot "
            "differentiate, expected use_reentrant=False"
        )


def _leaves(value: Tensor) -> set[int]:
    """Ids of the tensors that a backward pass from `value` would reach."""
    found = {id(node.variable) for node in nodes([value]) if hasattr(node, "variable")}
    return found | {id(value)} if value.requires_grad and value.is_leaf else found
