"""Exact Shapley values of training points for classifiers by nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one

CHUNK_ENTRIES = 1 << 17  # distances that are held at once: more leaves the cache


def knn_shapley(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, k: int = 5) -> Tensor:
    """What every training point is worth to the unweighted k-nearest-neighbour classifier; higher = better.

    A set S of training points is worth, to a test point, the share ``1/k sum 1[y_j = y_test]`` over its min(k, |S|)
    nearest members j; values are means over the test points, and add up to the worth of all training points. With the
    points in order of their distance to a test point, and ``m_i = 1[y_i = y_test]``, they are

        s_N = m_N min(k, N) / (k N),    s_i = s_(i+1) + (m_i - m_(i+1)) min(k, i) / (k i),

    which sums by parts to ``s_i = m_i min(1/k, 1/i) - sum_(j > max(i, k)) m_j / (j (j - 1))``: one sort and one
    cumulative sum. Points of equal (Euclidean) distance come in the order of their indices.

    Args:
        x: training points, floating (N, ...); for images, features of a network make better neighbours.
        y: their classes, integers (N,).
        x_test: test points, floating (T, ...).
        y_test: their classes, integers (T,).
        k: neighbours.

    Returns:
        float64 (N,), on the device of `x`. Negative values are points that do harm: wrong labels, above all.

    Raises:
        ValueError: shapes, dtypes or devices do not belong together, there are no points, values are not finite, or k
            is below 1.

    Source: Jia et al., "Efficient task-specific data valuation for nearest neighbor algorithms", VLDB 2019, theorem 1,
    here for N < k, too.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 1, 1, 1])  # the second label is wrong
        >>> worth = knn_shapley(x, y, torch.tensor([[0.4], [10.4]]), torch.tensor([0, 1]), k=1)
        >>> worth.argmin(), round(worth.sum().item(), 6)  # all points together classify both test points
        (tensor(1), 1.0)
    """
    check_at_least_one(k=k)
    x, x_test = _points("x", x, y), _points("x_test", x_test, y_test)
    for name, t in (("x_test", x_test), ("y", y), ("y_test", y_test)):
        if t.device != x.device:
            raise ValueError(f"{name}: is on {t.device}, but x is on {x.device}")
    if x_test.shape[1] != x.shape[1]:
        raise ValueError(f"x_test: has {x_test.shape[1]} features, expected {x.shape[1]} as x")
    n = len(x)
    place = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    own = 1 / place.clamp(min=k)
    later = torch.where(place > k, 1 / (place * (place - 1).clamp(min=1)), 0)
    # Equal points have one distance, whatever order a matrix product adds up in.
    different, which = x.unique(dim=0, return_inverse=True)
    alone = len(different) == n
    different = x if alone else different
    squares = different.square().sum(1)
    total = torch.zeros(n, dtype=torch.float64, device=x.device)
    step = max(1, CHUNK_ENTRIES // n)
    for points, labels in zip(x_test.split(step), y_test.split(step), strict=True):
        # Squared distances, less the square of the test point itself.
        distances = torch.addmm(squares, points, different.T, alpha=-2)
        order = _ascending(distances if alone else distances[:, which])
        match = (y == labels[:, None]).gather(1, order).double()
        earlier = (match * later).cumsum(1)
        values = match.mul_(own).add_(earlier).sub_(earlier[:, -1:])
        total += torch.empty_like(values).scatter_(1, order, values).sum(0)
    return total / len(x_test)


def _points(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The points as float64 (N, features), checked together with their classes."""
    labels = name.replace("x", "y", 1)
    if x.dim() < 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(f"{name}: is {x.dtype} of shape {list(x.shape)}, expected floating (N, ...), N at least 1")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"{labels}: is {y.dtype} of shape {list(y.shape)}, expected integers ({len(x)},) as {name}")
    if not x.isfinite().all():
        raise ValueError(f"{name}: has values that are NaN or infinite, expected finite ones")
    return x.detach().flatten(1).double()


def _ascending(rows: Tensor) -> Tensor:
    """Indices that sort every row, equal values by index, int64."""
    if rows.device.type != "cpu":
        return rows.sort(dim=1, stable=True).indices
    order = torch.from_numpy(rows.numpy().argsort(axis=1))  # vectorised, several times faster than torch, not stable
    values = rows.gather(1, order)
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    if tied.any():
        order[tied] = rows[tied].sort(dim=1, stable=True).indices
    return order
