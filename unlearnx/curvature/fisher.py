"""Diagonals of the Fisher information, exact for every sample."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unlearnx import _distributed as distributed
from unlearnx._arguments import checked
from unlearnx._batches import Nest, arguments, count
from unlearnx._calls import check_call
from unlearnx._checks import Params, check_finite, model_device, select_params
from unlearnx._copies import lent
from unlearnx._data import Data, check_same_in_every_process, shared_batches, size
from unlearnx._functional import functional_call
from unlearnx._losses import Loss, SampleLoss
from unlearnx._precision import autocast
from unlearnx._progress import progress_bar
from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.fisher_labels import FisherLabels
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.samples import SampleGradients, split_values
from unlearnx.ops._dtypes import compute_dtype as compute_dtype_of

FISHER_TYPES = ("empirical", "mc", "exact", "batch")


@checked
def fisher_diagonal(
    model: nn.Module,
    loss_fn: Loss,
    data: Data,
    *,
    params: Params = None,
    fisher_type: str = "empirical",
    reduction: str = "mean",
    batch_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Mean (or sum) over samples of the squared gradients of their losses.

    For linear, convolution, embedding, normalisation, attention, LSTM and GRU layers, fused kernels compute the squares
    from the layers' inputs and output gradients. All other parameters go through autograd sample by sample, which is
    exact too; a warning names them. The functions called on each parameter are watched, not modules, so that layers
    called twice, tied weights and functional code give the right result; this is checked against autograd on the first
    samples, once for a model. Under ``torch.distributed`` every process must make the same calls with the same data;
    the batches are divided among the processes, and all of them return the same result.

    Args:
        model: in eval mode, or without layers such as BatchNorm in which samples influence each other.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        data: pairs (x, y): tensors, a Dataset or a DataLoader.
        params: names of the parameters, ``"last:K"``, or None for all that require gradients. The part
            of the model before them runs without gradients.
        fisher_type: ``"empirical"`` takes the labels of the data; ``"mc"`` draws one label per sample, or for each
            of its positions, from the model's softmax, the same for every batch size; ``"exact"`` takes the expectation
            over all classes, with a backward pass for each class and position; with a binary cross-entropy the labels
            are yes or no, and with a squared error values, normally distributed with variance 1/2 (``"exact"`` takes a
            backward pass for each label of a sample);
            ``"batch"`` squares the gradient of each batch's mean loss and averages over batches, as published SSD code
            does. ``"batch"`` is not the Fisher diagonal, and it depends on the batch size.
        reduction: ``"mean"`` or ``"sum"`` over samples (over batches for ``"batch"``).
        batch_size: most samples per pass; only the result of ``"batch"`` depends on it.
        compute_dtype: dtype of forward and backward passes (by autocast) and of the products in per-sample gradients;
            sums are taken in float32 or better. Where the processor has no instructions for it, float32 is used.
        generator: CPU generator for ``"mc"``: it draws a number in [0, 1) for every sample, from which the model's
            probabilities give the label.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Returns:
        A tensor for each parameter, keyed like ``named_parameters()``, in float32 (float64 for float64 parameters).

    Raises:
        ValueError: an unknown option, empty data, a model in which samples influence each other, or a result that is
            not finite.

    Source: Kunstner, Hennig and Balles, "Limitations of the empirical Fisher approximation", NeurIPS 2019;
    ``"batch"``: Foster et al., AAAI 2024, public code.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> fisher = fisher_diagonal(model, nn.functional.cross_entropy, (x, y), batch_size=8)
        >>> dy = model(x).softmax(1) - nn.functional.one_hot(y)
        >>> torch.allclose(fisher["bias"], dy.square().mean(0), rtol=1e-4)
        True
    """
    if fisher_type not in FISHER_TYPES:
        raise ValueError(f"fisher_type is {fisher_type!r}, expected one of {', '.join(FISHER_TYPES)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
    check_call(model, loss_fn, data)
    names = select_params(model, params)
    check_same_in_every_process("data", data)
    n = size(data)
    frozen_prefix = FrozenPrefix(model, names, data)
    loss, device = SampleLoss(loss_fn), model_device(model)
    if batch_size is None and isinstance(data, DataLoader):
        batch_size = data.batch_size
    own = dict(model.named_parameters())
    total = {name: torch.zeros_like(own[name], dtype=compute_dtype_of(own[name])) for name in names}
    add: Callable[[int, Nest, Nest], None]
    if fisher_type == "batch":
        add = partial(_add_batch_squares, lent(frozen_prefix.head), loss, total, compute_dtype)
    else:
        labels = FisherLabels(loss, fisher_type, n, device, generator)
        add = _SampleSquares(frozen_prefix.head, loss, total, compute_dtype, labels)
    parts = seen = 0
    with progress_bar("Fisher diagonal", n, progress) as advance, distributed.failing_together(device):
        for position, x, y in shared_batches(data, batch_size, device):
            add(position, frozen_prefix(x), y)
            parts += 1 if fisher_type == "batch" else count(x)
            advance(position + count(x) - seen)
            seen = position + count(x)
    counted = torch.tensor(parts, dtype=torch.float64, device=device)
    distributed.all_reduce_([*total.values(), counted])
    check_finite("Fisher diagonal", total.items())
    if reduction == "mean":
        for t in total.values():
            t /= counted
    return total


def _add_batch_squares(
    model: nn.Module,
    loss: SampleLoss,
    total: dict[str, Tensor],
    dtype: torch.dtype | None,
    position: int,
    x: Nest,
    y: Nest,
) -> None:
    """Add the squares of the gradient of the batch's mean loss."""
    values, rest = split_values(model, list(total))
    with torch.enable_grad(), autocast(model_device(model), dtype):
        leaves = {name: v.requires_grad_() for name, v in values.items()}
        objective = loss.total(functional_call(model, (leaves, rest), *arguments(x)), y) / count(x)
        gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        total[name].addcmul_(gradient, gradient)


class _SampleSquares:
    """Adds the squares of per-sample gradients."""

    def __init__(
        self,
        model: nn.Module,
        loss: SampleLoss,
        total: dict[str, Tensor],
        dtype: torch.dtype | None,
        labels: FisherLabels,
    ):
        self.total, self._labels = total, labels
        self._prepare = partial(SampleGradients, model, loss, list(total), dtype=dtype)
        self._gradients: SampleGradients | None = None

    def __call__(self, position: int, x: Nest, y: Nest) -> None:
        if self._gradients is None:
            self._gradients = self._prepare(x)

        def on_contribution(name: str, contribution: Contribution, weight: Tensor | None) -> None:
            self.total[name] += contribution.squares(weight)

        for part_x, part_y in self._gradients.split(x, y):
            self._gradients.run(part_x, partial(self._labels, position, part_y), on_contribution)
            position += count(part_x)
