"""Influence of training samples on queries, with the Fisher information in Kronecker factors.

The influence of a training sample z on a query q is how much higher the loss of q is for z being in the training data,
to first order:

    s(q, z) = -<grad loss(q), (F + damping)^-1 grad loss(z)> / N

A high score means that z is to blame for the loss of q; training samples that help have negative scores.

Source: Koh and Liang, "Understanding black-box predictions via influence functions", ICML 2017; with EK-FAC: Grosse et
al., "Studying large language model generalization with influence functions", arXiv 2308.03296, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._calls import check_call
from unlearnx._checks import Params, check_at_least_one, check_finite, known_as
from unlearnx._data import Data, Samples, check_in_order, dataset_of, size
from unlearnx._losses import Loss
from unlearnx._vectors import Vector
from unlearnx.curvature import EKFAC, Factors, per_sample_grad_difference, per_sample_grad_dot
from unlearnx.curvature.kfac.factors import inverse

STORED_BYTES = 1 << 28  # gradients of queries, or of samples in turn, that are stored at a time


@checked
def ekfac_influence(
    model: nn.Module,
    loss_fn: Loss,
    train: Data,
    queries: Data,
    *,
    factors: Factors | None = None,
    damping: float | None = None,
    params: Params = None,
    batch_size: int | None = None,
) -> Tensor:
    """Influence of each of N training samples on the loss of each of Q queries.

    The gradients of the queries are solved with the factors, a quarter of a gigabyte of them at a time; each time, one
    pass over the training data takes all inner products (:func:`unlearnx.curvature.per_sample_grad_dot`). The N
    gradients are never stored.

    Args:
        model: the trained model, in eval mode; it is not changed.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        train: the N training samples (x, y): a pair of tensors, a Dataset, or a DataLoader that keeps their order.
        queries: Q samples (x, y).
        factors: of the training data; None to fit ``EKFAC()`` on them, with labels drawn from a fixed seed.
        damping: added to the eigenvalues of the factors; None for a tenth of their mean in each layer.
        params: names of the parameters, ``"last:K"``, or None for all that require gradients; of given `factors`, their
            own.
        batch_size: most training samples per pass.

    Returns:
        (Q, N), higher = more to blame, in the unit of the loss, in float32 (float64 where a parameter is).

    Raises:
        ValueError: empty data, a DataLoader that shuffles, a model in which samples influence each other, a damping
            that is not above zero, factors of another model or of this one before a change, `params` that are not
            theirs, or scores that are not finite.

    Example:
        >>> x, y = torch.randn(30, 8), torch.arange(30) % 3
        >>> queries = torch.randn(5, 8), torch.arange(5) % 3
        >>> ekfac_influence(nn.Linear(8, 3), nn.functional.cross_entropy, (x, y), queries).shape
        torch.Size([5, 30])
    """
    _check_damping(damping)
    check_in_order("train", train)
    check_in_order("queries", queries)
    check_call(model, loss_fn, queries, name="queries")
    factors = _factors(model, loss_fn, train, factors, params, batch_size)
    n, inverted = size(train), inverse(damping)
    scores = []
    for gradients in _gradients(model, loss_fn, "queries", queries, factors):
        solved = factors.layout.vector(factors.rows_applied(inverted, gradients), single=False, wide=True)
        names = factors.layout.names
        products = per_sample_grad_dot(model, loss_fn, train, solved, params=names, batch_size=batch_size)
        scores.append(products.div_(-n))
    return torch.cat(scores)


@checked
def ekfac_self_influence(
    model: nn.Module,
    loss_fn: Loss,
    train: Data,
    *,
    factors: Factors | None = None,
    damping: float | None = None,
    params: Params = None,
    batch_size: int | None = None,
) -> Tensor:
    """How much lower the loss of each training sample is for being in the training data, to first order.

    ``<grad loss(z), (F + damping)^-1 grad loss(z)> / N``: high for samples that the model has memorised, such as
    mislabelled ones. A quarter of a gigabyte of gradients is stored at a time.

    Args:
        model, loss_fn, train, factors, damping, params, batch_size: see :func:`ekfac_influence`.

    Returns:
        (N,), at least zero, in float32 (float64 where a parameter is).

    Raises:
        ValueError: as for :func:`ekfac_influence`.

    Example:
        >>> x, y = torch.randn(30, 8), torch.arange(30) % 3
        >>> ekfac_self_influence(nn.Linear(8, 3), nn.functional.cross_entropy, (x, y)).topk(3).indices.shape
        torch.Size([3])
    """
    _check_damping(damping)
    check_in_order("train", train)
    factors = _factors(model, loss_fn, train, factors, params, batch_size)
    n, inverted = size(train), inverse(damping)
    parts = [
        (gradients * factors.rows_applied(inverted, gradients)).sum(1) / n
        for gradients in _gradients(model, loss_fn, "train", train, factors, batch_size)
    ]
    scores = torch.cat(parts)
    check_finite("scores", [("train", scores)])
    return scores


def _check_damping(damping: float | None) -> None:
    if damping is not None and not 0 < damping < math.inf:
        raise ValueError(f"damping is {damping!r}, expected a finite number > 0, or None")


def _factors(
    model: nn.Module, loss_fn: Loss, train: Data, factors: Factors | None, params: Params, batch_size: int | None
) -> Factors:
    if factors is None:
        generator = torch.Generator().manual_seed(0)
        fit = EKFAC().fit
        return fit(model, loss_fn, train, params=params, diagonal=False, batch_size=batch_size, generator=generator)
    factors.check_fits(model)
    factors.check_params(model, params)
    return factors


def _gradients(
    model: nn.Module, loss_fn: Loss, name: str, data: Data, factors: Factors, most: int | None = None
) -> Iterator[Tensor]:
    """The gradients of some samples at a time, as rows (n, P); `name` is the argument that `data` is."""
    check_at_least_one(batch_size=most)
    samples, layout = Samples(data), factors.layout
    step = max(1, STORED_BYTES // (layout.size * layout.dtype.itemsize))
    step = min(step, most or step)
    for start in range(0, len(samples), step):
        s = slice(start, min(start + step, len(samples)))
        part = dataset_of(*samples.read(s))
        with known_as(old=name):
            found: Vector = per_sample_grad_difference(model, loss_fn, part, params=layout.names)
        yield layout.rows("gradients", found)[0]
