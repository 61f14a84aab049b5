"""Gradients of sets of samples, and their differences when samples are corrected."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, RandomSampler

from unlearnx._checks import Params, check_deterministic, check_finite, model_device, select_params
from unlearnx._data import Data, batches, channels_last, size
from unlearnx._losses import Loss, SampleLoss
from unlearnx.curvature.prefix import FrozenPrefix

CHUNK = 16  # samples in one vmap: few enough that their gradients stay in cache

Batch = tuple[Tensor, Tensor]


def _pairs(
    model: nn.Module, old: Data, new: Data | None, batch_size: int | None
) -> Iterator[tuple[Batch, Batch | None]]:
    device = model_device(model)
    if new is None:
        for batch in batches(old, batch_size, device):
            yield batch, None
        return
    for name, data in (("old", old), ("new", new)):
        if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler):
            raise ValueError(f"{name}: is a DataLoader that shuffles, whose samples do not pair up; pass its dataset")
    if size(old) != size(new):
        raise ValueError(f"new: has {size(new)} samples, expected {size(old)} as old")
    yield from zip(batches(old, batch_size, device), batches(new, batch_size, device), strict=True)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def grad_difference(
    model: nn.Module,
    loss_fn: Loss,
    old: Data,
    new: Data | None = None,
    *,
    params: Params = None,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Sum over samples of ``grad loss(new_i) - grad loss(old_i)``; without `new`, the sum of ``grad loss(old_i)``.

    Where only labels change, the two losses differ at the output alone and one backward pass serves both.

    Args:
        model: in eval mode, or without layers that mix samples.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum; all give the same result.
        old: samples (x, y) as they were: a pair of tensors, a Dataset or a DataLoader.
        new: the same samples corrected, in the same order.
        params: names of the parameters, ``"last:K"``, or None for all that require gradients. The part of the
            model before them runs without a graph.
        batch_size: samples a pass; the result does not depend on it.

    Returns:
        A tensor for each parameter, keyed like ``named_parameters()``.

    Raises:
        ValueError: empty or unpaired data, samples that interact, or a gradient that is not finite.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 6 without tau.
    """
    check_deterministic(model)
    names = select_params(model, params)
    cut = FrozenPrefix(model, names, old)
    loss = SampleLoss(loss_fn)
    own = dict(model.named_parameters())
    values = {name: p.detach().requires_grad_(name in names) for name, p in own.items()}
    chosen = [values[name] for name in names]
    total = {name: torch.zeros_like(own[name]) for name in names}

    def output(x: Tensor) -> Tensor:
        if cut.prefix is not None:
            with torch.no_grad():
                x = cut.prefix(channels_last(x))
        return functional_call(cut.head, {n: v for n, v in values.items() if n in head_names}, (x,))

    head_names = {name for name, _ in cut.head.named_parameters()}
    for (x, y), corrected in _pairs(model, old, new, batch_size):
        with torch.enable_grad():
            before = output(x)
            if corrected is None:
                objective = loss.total(before, y)
            else:
                x_new, y_new = corrected
                after = before if _same(x, x_new) else output(x_new)
                objective = loss.total(after, y_new) - loss.total(before, y)
            gradients = torch.autograd.grad(objective, chosen, materialize_grads=True)
        for name, gradient in zip(names, gradients, strict=True):
            total[name] += gradient
    check_finite("gradient", total.items())
    return total


def per_sample_grad_difference(
    model: nn.Module, loss_fn: Loss, old: Data, new: Data | None = None, *, params: Params = None
) -> dict[str, Tensor]:
    """Every sample's ``grad loss(new_i) - grad loss(old_i)``; without `new`, its ``grad loss(old_i)``.

    Args, errors and source as for :func:`grad_difference`.

    Returns:
        A tensor (N, *shape) for each parameter: as much memory as N copies of the parameters.
    """
    check_deterministic(model)
    names = select_params(model, params)
    loss = SampleLoss(loss_fn)
    values, rest = split_values(model, names)

    def objective(values, x, y, x_new=None, y_new=None):
        before = sample_loss(model, loss, values, rest, x, y)
        return before if x_new is None else sample_loss(model, loss, values, rest, x_new, y_new) - before

    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for pair, corrected in _pairs(model, old, new, CHUNK):
        arguments = pair if corrected is None else (*pair, *corrected)
        gradients = vmap(grad(objective), in_dims=(None, *[0] * len(arguments)))(values, *arguments)
        for name in names:
            rows[name].append(gradients[name].detach())
    result = {name: torch.cat(parts) for name, parts in rows.items()}
    check_finite("gradient", result.items())
    return result


def split_values(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached values of the chosen parameters, and of everything else that the model computes with."""
    chosen = set(names)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: everything[name].detach() for name in names}
    return values, {name: t.detach() for name, t in everything.items() if name not in chosen}


def sample_loss(
    model: nn.Module,
    loss: SampleLoss,
    values: dict[str, Tensor],
    rest: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Loss of a single sample (x, y) without batch dimension, for use under vmap."""
    return loss.total(functional_call(model, (values, rest), (x.unsqueeze(0),)), y.unsqueeze(0))
