"""Gradients of sets of samples, and their differences when samples are corrected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from unlearnx import _distributed as distributed
from unlearnx._arguments import checked
from unlearnx._batches import Nest, arguments, count, equal, rows
from unlearnx._calls import check_call
from unlearnx._checks import Params, check_finite, model_device, select_params
from unlearnx._copies import lent
from unlearnx._data import Data, batches, check_same_in_every_process, shared_batches, size
from unlearnx._functional import functional_call
from unlearnx._losses import Loss, SampleLoss
from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.samples import SampleGradients
from unlearnx.curvature.targets import Targets

Batch = tuple[Nest, Nest]


def _pairs(
    model: nn.Module, old: Data, new: Data | None, batch_size: int | None, *, shared: bool
) -> Iterator[tuple[Batch, Batch | None]]:
    device = model_device(model)

    def read(data: Data) -> Iterator[Batch]:
        if not shared:
            return batches(data, batch_size, device, title="gradients")
        return ((x, y) for _, x, y in shared_batches(data, batch_size, device, title="gradients"))

    if new is None:
        for batch in read(old):
            yield batch, None
        return
    for name, data in (("old", old), ("new", new)):
        if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler):
            raise ValueError(
                f"{name}: is a DataLoader that shuffles, expected old and new in the same order; pass its dataset"
            )
    if size(old) != size(new):
        raise ValueError(f"new: has {size(new)} samples, expected {size(old)} as old")
    yield from zip(read(old), read(new), strict=True)


def _check_new(model: nn.Module, loss_fn: Loss, new: Data | None) -> None:
    """The samples of `new` too are some that the model and the loss take; that these are right is known by then."""
    if new is not None:
        check_call(model, loss_fn, new, name="new", deterministic=False, penalty=True)


@checked
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

    Where a batch's x is the same in `old` and `new` (only labels change), one forward and backward pass serves both
    losses. Under ``torch.distributed`` every process must make the same calls with the same data; the batches are
    divided among the processes, and all of them return the same result.

    Args:
        model: in eval mode, or without layers such as BatchNorm in which samples influence each other.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum; all give the same result.
        old: samples (x, y) as they were: batched tensors, a Dataset or a DataLoader (see :mod:`unlearnx.data`).
        new: the same samples corrected, in the same order.
        params: names of the parameters, ``"last:K"``, or None for all that require gradients. The part of the
            model before them runs without gradients.
        batch_size: samples per forward pass; the result does not depend on it.

    Returns:
        A tensor for each parameter, keyed like ``named_parameters()``.

    Raises:
        ValueError: empty data, `old` and `new` of different length, a model in which samples influence each other, or a
            gradient that is not finite.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, eq. 6 without tau.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> change = grad_difference(model, nn.functional.cross_entropy, (x, y), (x, (y + 1) % 3))  # other labels
        >>> change["weight"].shape
        torch.Size([3, 4])
    """
    check_call(model, loss_fn, old, name="old", penalty=True)
    _check_new(model, loss_fn, new)
    names = select_params(model, params)
    check_same_in_every_process("old", old)
    if new is not None:
        check_same_in_every_process("new", new)
    frozen_prefix = FrozenPrefix(model, names, old)
    loss = SampleLoss(loss_fn)
    own = dict(model.named_parameters())
    values = {name: p.detach().requires_grad_(name in names) for name, p in own.items()}
    chosen = [values[name] for name in names]
    total = {name: torch.zeros_like(own[name]) for name in names}

    head = lent(frozen_prefix.head)
    head_names = {name for name, _ in head.named_parameters()}
    direct = [name for name in names if own[name].requires_grad]
    itself: list[Tensor] = [own[name] for name in direct]  # what a penalty in the loss depends on

    def output(x: Nest) -> Any:
        used = {n: v for n, v in values.items() if n in head_names}
        return rows(functional_call(head, used, *arguments(frozen_prefix(x))), count(x))

    with distributed.failing_together(model_device(model)):
        for (x, y), corrected in _pairs(model, old, new, batch_size, shared=True):
            with torch.enable_grad():
                before = output(x)
                if corrected is None:
                    objective = loss.total(before, y)
                else:
                    x_new, y_new = corrected
                    after = before if equal(x, x_new) else output(x_new)
                    objective = loss.total(after, y_new) - loss.total(before, y)
                gradients = torch.autograd.grad(objective, chosen + itself, materialize_grads=True)
            for name, gradient in zip([*names, *direct], gradients, strict=True):
                total[name] += gradient
    distributed.all_reduce_(total.values())
    check_finite("gradient", total.items())
    return total


@checked
def per_sample_grad_difference(
    model: nn.Module, loss_fn: Loss, old: Data, new: Data | None = None, *, params: Params = None
) -> dict[str, Tensor]:
    """Every sample's ``grad loss(new_i) - grad loss(old_i)``; without `new`, its ``grad loss(old_i)``.

    Arguments, errors and source are those of :func:`grad_difference`; here every process computes all samples.

    Returns:
        A tensor (N, *shape) for each parameter, which takes the memory of N copies of the parameters.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> each = per_sample_grad_difference(model, nn.functional.cross_entropy, (x, y))
        >>> each["weight"].shape
        torch.Size([20, 3, 4])
    """
    check_call(model, loss_fn, old, name="old")
    _check_new(model, loss_fn, new)
    names = select_params(model, params)
    loss = SampleLoss(loss_fn)
    own = dict(model.named_parameters())
    gradients: SampleGradients | None = None
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for (x, y), corrected in _pairs(model, old, new, None, shared=False):
        if gradients is None:
            gradients = SampleGradients(model, loss, names, x, None)
        if corrected is None or equal(x, corrected[0]):
            targets = Targets(y) if corrected is None else Targets(corrected[1], minus=y)
            before, after = _contributions(gradients, x, targets), None
        else:
            before = _contributions(gradients, x, Targets(y))
            after = _contributions(gradients, corrected[0], Targets(corrected[1]))
        for name in names:
            zero = own[name].new_zeros(()).expand(count(x), *own[name].shape)
            rows[name].append(_per_sample_gradients(before[name], None if after is None else after[name], zero))
    result = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in rows.items()}
    check_finite("gradient", result.items())
    return result


def _contributions(gradients: SampleGradients, x: Nest, targets: Targets) -> dict[str, list[Contribution]]:
    parts: dict[str, list[Contribution]] = {name: [] for name in gradients.names}
    gradients.run(x, lambda _: [targets], lambda name, contribution, _: parts[name].append(contribution))
    return parts


def _per_sample_gradients(before: list[Contribution], after: list[Contribution] | None, zero: Tensor) -> Tensor:
    """Gradients, or their differences, of all samples of a pass; its contributions are in the order of the samples."""

    def join(rows: list[Tensor]) -> Tensor:
        return torch.cat(rows) if len(rows) > 1 else rows[0] if rows else zero.contiguous()

    if after is None:
        return join([b.per_sample() for b in before])
    if [b.form() for b in before] == [a.form() for a in after]:
        return join([b.per_sample(a) for b, a in zip(before, after, strict=True)])
    return join([a.per_sample() for a in after]) - join([b.per_sample() for b in before])
