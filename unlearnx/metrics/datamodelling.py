"""Whether attribution scores predict what a model trained on a part of the data does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unlearnx._arguments import checked
from unlearnx._calls import run
from unlearnx._checks import check_at_least_one, check_fraction, known_as, model_device
from unlearnx._data import Data, batches, materialize, picked, size
from unlearnx._losses import Loss, SampleLoss, named
from unlearnx._models import check_model
from unlearnx._progress import progress_bar

Fit = Callable[[Dataset[Any]], nn.Module]


@checked
def lds(scores: Tensor, subsets: Tensor, losses: Tensor) -> Tensor:
    """Linear datamodelling score of each query: the rank correlation of predicted and true losses over subsets.

    What the scores predict for a model trained on a subset is the sum of the scores of the subset's samples.

    Args:
        scores: (Q, N), higher where a training sample raises the query's loss, as of
            :func:`unlearnx.attribution.ekfac_influence`.
        subsets: (S, N), True for the samples of each subset.
        losses: (S, Q), each query's loss under the model trained on each subset.

    Returns:
        (Q,), Spearman's correlation, from -1 to 1; NaN where all predictions or all losses are equal.

    Raises:
        ValueError: shapes do not fit together, or there are fewer than two subsets.

    Source: Park et al., "TRAK: attributing model behavior at scale", ICML 2023, section 2.

    Example:
        >>> subsets = torch.rand(20, 30) < 0.5
        >>> scores = torch.randn(4, 30)
        >>> lds(scores, subsets, subsets.float() @ scores.T).min() > 0.999
        tensor(True)
    """
    if scores.dim() != 2 or subsets.dim() != 2 or subsets.shape[1] != scores.shape[1]:
        raise ValueError(
            f"subsets: has shape {list(subsets.shape)}, expected (S, N) with scores (Q, N), got scores of "
            f"{list(scores.shape)}"
        )
    if losses.shape != (len(subsets), len(scores)) or len(subsets) < 2:
        raise ValueError(
            f"losses: has shape {list(losses.shape)}, expected [{len(subsets)}, {len(scores)}], two subsets or more"
        )
    predicted = subsets.double().to(scores.device) @ scores.double().T
    a, b = (_ranks(t) for t in (predicted, losses.to(predicted)))
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the first dimension; equal values share the mean of their ranks."""
    columns = values.T.contiguous()
    ordered = columns.sort(1).values
    below, upto = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    return ((below + upto - 1).double() / 2).T


@checked
def losses_of_subsets(
    train: Fit,
    loss_fn: Loss,
    data: Data,
    queries: Data,
    *,
    subsets: int = 50,
    fraction: float = 0.5,
    repeats: int = 1,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Train a model on each of several random subsets of the data, and measure every query's loss, for :func:`lds`.

    Args:
        train: trains a new model on a dataset and returns it.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        data: N samples (x, y).
        queries: Q samples (x, y).
        subsets: number S of subsets.
        fraction: part of the data in each.
        repeats: models per subset, whose losses are averaged: less noise of training.
        generator: CPU generator of the subsets.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Returns:
        subsets: (S, N), bool.
        losses: (S, Q), float64.

    Raises:
        ValueError: a count below one, or a fraction with which a subset is empty or all of the data.

    Example:
        >>> data, queries = (torch.randn(40, 4), torch.arange(40) % 3), (torch.randn(5, 4), torch.arange(5) % 3)
        >>> subsets, losses = losses_of_subsets(
        ...     lambda part: nn.Linear(4, 3), nn.functional.cross_entropy, data, queries, subsets=3
        ... )
        >>> subsets.sum(1).tolist(), losses.shape
        ([20, 20, 20], torch.Size([3, 5]))
    """
    check_at_least_one(subsets=subsets, repeats=repeats)
    check_fraction(fraction=fraction)
    n = size(data)
    chosen = round(fraction * n)
    if not 0 < chosen < n:
        raise ValueError(f"fraction is {fraction}, expected a number with which a subset has 1 to {n - 1} samples")
    pair, loss = materialize(queries), SampleLoss(loss_fn)
    masks, losses = torch.zeros(subsets, n, dtype=torch.bool), []
    with progress_bar("Subsets", subsets * repeats, progress) as advance:
        for k in range(subsets):
            index = torch.randperm(n, generator=generator)[:chosen].sort().values
            masks[k, index] = True
            part = picked(data, index)
            total = torch.zeros(size(queries), dtype=torch.float64)
            for _ in range(repeats):
                with named(lambda: "train: expected a function that trains a model on a dataset and returns it"):
                    model = train(part)
                    check_model(model)
                    model.eval()
                asked = batches(pair, None, model_device(model))
                with torch.no_grad(), known_as(data="queries"):
                    total += torch.cat([loss.each(run(model, x), y).cpu() for x, y in asked])
                advance(1)
            losses.append(total / repeats)
    return masks, torch.stack(losses)
