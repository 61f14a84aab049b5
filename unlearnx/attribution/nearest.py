"""Exact Shapley values of training points for classifiers by nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one

CHUNK_ENTRIES = 1 << 20  # distances that are held at once: more leaves the cache


def knn_shapley(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, *, k: int = 5) -> Tensor:
    """What every training point is worth to the unweighted k-nearest-neighbour classifier; higher = better.

    A set S of training points is worth, to a test point, the share ``1/k sum 1[y_j = y_test]`` over its min(k, |S|)
    nearest members j; values are means over the test points, and add up to the worth of all training points. With the
    points in order of their distance to a test point, and ``m_i = 1[y_i = y_test]``, they are

        s_N = m_N min(k, N) / (k N),    s_i = s_(i+1) + (m_i - m_(i+1)) min(k, i) / (k i):

    one sort and one cumulative sum. Points of equal (Euclidean) distance come in the order of their indices.

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
    """
    check_at_least_one(k=k)
    x, x_test = _points("x", x, y), _points("x_test", x_test, y_test)
    for name, t in (("x_test", x_test), ("y", y), ("y_test", y_test)):
        if t.device != x.device:
            raise ValueError(f"{name}: is on {t.device}, but x is on {x.device}")
    if x_test.shape[1] != x.shape[1]:
        raise ValueError(f"x_test: has {x_test.shape[1]} features, expected {x.shape[1]} as x")
    n = len(x)
    position = torch.arange(1, n + 1, dtype=torch.float64, device=x.device)
    share = position.clamp(max=k) / (k * position)
    total = torch.zeros(n, dtype=torch.float64, device=x.device)
    step = max(1, CHUNK_ENTRIES // n)
    for part, labels in zip(x_test.split(step), y_test.split(step), strict=True):
        order = _nearest_first(part, x)
        match = (y[order] == labels[:, None]).double()
        match[:, :-1] -= match[:, 1:].clone()  # what is left in the last column is s_N k N / min(k, N)
        values = (match * share).flip(1).cumsum(1).flip(1)
        total += torch.empty_like(values).scatter_(1, order, values).sum(0)
    return total / len(x_test)


def _points(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The points as (N, features), checked together with their classes."""
    labels = name.replace("x", "y", 1)
    if x.dim() < 2 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(f"{name}: is {x.dtype} of shape {list(x.shape)}, expected floating (N, ...), N at least 1")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"{labels}: is {y.dtype} of shape {list(y.shape)}, expected integers ({len(x)},) as {name}")
    if not x.isfinite().all():
        raise ValueError(f"{name}: has values that are NaN or infinite, expected finite ones")
    return x.detach().flatten(1)


def _nearest_first(points: Tensor, x: Tensor) -> Tensor:
    """Indices of all of `x`, for every point those of the nearest first, int64 (points, N)."""
    dtype = torch.float64 if torch.float64 in (points.dtype, x.dtype) else torch.float32
    # Differences, not products: equal points then have equal distances, to the last bit.
    distances = torch.cdist(points.to(dtype), x.to(dtype), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sort(dim=1, stable=True).indices
