"""Exact Shapley values of training samples for k-nearest-neighbour classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx._arguments import checked
from unlearnx._checks import check_at_least_one

DISTANCES_AT_ONCE = 1 << 17  # distances computed at once: few enough that they stay in the CPU's caches


@checked
def knn_shapley(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, k: int = 5) -> Tensor:
    """Shapley value of each training sample for an unweighted k-nearest-neighbour classifier; higher = more valuable.

    The utility of a set S of training samples for a test sample is ``1/k sum 1[y_j = y_test]`` over its min(k, |S|)
    nearest members j. The values returned are means over the test samples; they add up to the utility of all training
    samples. With the training samples ordered by distance to a test sample, and ``m_i = 1[y_i = y_test]``, they are

        s_N = m_N min(k, N) / (k N),    s_i = s_(i+1) + (m_i - m_(i+1)) min(k, i) / (k i),

    or, summed by parts, ``s_i = m_i min(1/k, 1/i) - sum_(j > max(i, k)) m_j / (j (j - 1))``: one sort and one
    cumulative sum. Samples of equal (Euclidean) distance are ordered by their indices.

    Args:
        x: training samples, floating (N, ...); for images, features of a network give better neighbours than pixels.
        y: their classes, integers (N,).
        x_test: test samples, floating (T, ...).
        y_test: their classes, integers (T,).
        k: number of neighbours.

    Returns:
        float64 (N,), on the device of `x`. Samples with negative values do harm, such as those with wrong labels.

    Raises:
        ValueError: shapes, dtypes or devices do not match, there are no samples, values are not finite, or k is below
            1.

    Source: Jia et al., "Efficient task-specific data valuation for nearest neighbor algorithms", VLDB 2019, theorem 1,
    extended to N < k.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 1, 1, 1])  # the second label is wrong
        >>> worth = knn_shapley(x, y, torch.tensor([[0.4], [10.4]]), torch.tensor([0, 1]), k=1)
        >>> worth.argmin(), round(worth.sum().item(), 6)  # all samples together classify both test samples
        (tensor(1), 1.0)
    """
    check_at_least_one(k=k)
    x, x_test = _checked_samples("x", x, y), _checked_samples("x_test", x_test, y_test)
    for name, t in (("x_test", x_test), ("y", y), ("y_test", y_test)):
        if t.device != x.device:
            raise ValueError(f"{name}: is on {t.device}, but x is on {x.device}")
    if x_test.shape[1] != x.shape[1]:
        raise ValueError(f"x_test: has {x_test.shape[1]} features, expected {x.shape[1]} as x")
    n = len(x)
    rank = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    own_weight = 1 / rank.clamp(min=k)
    later_weight = torch.where(rank > k, 1 / (rank * (rank - 1).clamp(min=1)), 0)
    # Distances of equal samples are computed once: a matrix product may round them differently, which breaks ties.
    different, index_of_sample = x.unique(dim=0, return_inverse=True)
    all_different = len(different) == n
    different = x if all_different else different
    squares = different.square().sum(1)
    total = torch.zeros(n, dtype=torch.float64, device=x.device)
    step = max(1, DISTANCES_AT_ONCE // n)
    for samples, labels in zip(x_test.split(step), y_test.split(step), strict=True):
        # Squared distances minus the squared norm of the test sample, which does not change the order.
        distances = torch.addmm(squares, samples, different.T, alpha=-2)
        order = _ascending(distances if all_different else distances[:, index_of_sample])
        match = (y == labels[:, None]).gather(1, order).double()
        up_to_here = (match * later_weight).cumsum(1)
        values = match.mul_(own_weight).add_(up_to_here).sub_(up_to_here[:, -1:])
        total += torch.empty_like(values).scatter_(1, order, values).sum(0)
    return total / len(x_test)


def _checked_samples(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The samples as float64 (N, features), after checks of the samples and of their classes."""
    labels = name.replace("x", "y", 1)
    if x.dim() < 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(f"{name}: is {x.dtype} of shape {list(x.shape)}, expected floating (N, ...), N at least 1")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"{labels}: is {y.dtype} of shape {list(y.shape)}, expected integers ({len(x)},) as {name}")
    if not x.isfinite().all():
        raise ValueError(f"{name}: has values that are NaN or infinite, expected finite ones")
    return x.detach().flatten(1).double()


def _ascending(rows: Tensor) -> Tensor:
    """Indices (int64) that sort each row, with equal values ordered by index."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1, stable=True).indices
    order = torch.from_numpy(rows.numpy().argsort(axis=1))  # several times faster than torch, but not stable
    values = rows.gather(1, order)
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    if tied.any():
        order[tied] = rows[tied].sort(dim=1, stable=True).indices
    return order
