"""Data Shapley: what training points are worth to any model, estimated from permutations of the points.

Source: Ghorbani and Zou, "Data Shapley: Equitable Valuation of Data for Machine Learning", ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unlearnx._calls import check_call
from unlearnx._checks import check_at_least_one, check_at_least_zero, model_device
from unlearnx._copies import lent
from unlearnx._data import Data, check_in_order, materialize
from unlearnx._losses import Loss, SampleLoss
from unlearnx.attribution.permutations import Sampling, ShapleyResult, reproducible, seeded
from unlearnx.curvature.per_sample import split_values

Fit = Callable[[Tensor], Any]
Score = Callable[[Any], float]
FULL = 2**32 - 1  # number of the stream of random numbers for the fit on all points; permutations have lower ones


def tmc_shapley(
    fit: Fit,
    score: Score,
    n_points: int,
    *,
    empty_score: float = 0.0,
    tolerance: float = 0.0,
    permutations: int = 1000,
    truncation: float = 0.0,
    seed: int = 0,
    workers: int = 1,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> ShapleyResult:
    """Shapley values of training points by truncated Monte Carlo; higher = worth more.

    The points of a random permutation join the training set one by one, and each is credited with the change in score
    when the model is fitted again. Results do not depend on `workers`, nor on interruptions: permutation p, and torch's
    random numbers in its fits, come from `seed` and p alone, and torch computes on one thread.

    Args:
        fit: ``fit(indices)`` trains a model on the points of these indices, int64 (m,) in ascending order, m >= 1.
        score: ``score(fitted)`` tells how good it is, higher = better, on data of its own.
        n_points: number of training points.
        empty_score: score of a model without training points: chance, for an accuracy.
        tolerance: stop once no standard error is above it, after 100 permutations at the earliest.
        permutations: how many at most.
        truncation: the rest of a permutation is credited with nothing once a score is within this of that of all
            points. It saves most of the fits, and brings a bias that the standard errors know nothing of; at 0 every
            permutation is played to its end.
        seed: of the permutations.
        workers: processes. Where they are not forked (other systems than Linux, CUDA in use) `fit` and `score` have to
            be functions of a module, and the calling script needs an ``if __name__ == "__main__"``.
        checkpoint: file to save to every few seconds and to resume from; written to a temporary name first.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Raises:
        ValueError: a number is out of range, a score is not finite, or the checkpoint belongs to another run.

    Example:
        >>> worth = [1.0, 2.0, 4.0]
        >>> result = tmc_shapley(lambda s: s, lambda s: sum(worth[i] for i in s.tolist()), 3, permutations=5)
        >>> result.values.tolist()
        [1.0, 2.0, 4.0]
    """
    check_at_least_one(n_points=n_points)
    check_at_least_zero(truncation=truncation)
    sampling = Sampling(permutations, tolerance, seed, workers, checkpoint, progress)
    with reproducible(seeded(seed, FULL)):
        full = _finite("score", score(fit(torch.arange(n_points))))
    game = _Refitting(fit, score, _finite("empty_score", empty_score), full, truncation)
    key = f"TMC-Shapley, from {empty_score!r} to {full!r}, truncation {truncation!r}"
    return sampling.run(game, n_points, key)


def gradient_shapley(
    model: nn.Module,
    loss_fn: Loss,
    train: Data,
    test: Data,
    *,
    lr: float = 0.01,
    score: Callable[[Tensor, Tensor], Tensor | float] | None = None,
    tolerance: float = 0.0,
    permutations: int = 100,
    seed: int = 0,
    workers: int = 1,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> ShapleyResult:
    """Shapley values of training points for one epoch of SGD, G-Shapley; higher = worth more.

    Every permutation of the points is one epoch of single-point steps from the weights that `model` has, untrained or
    in need of repair, and a point is credited with the change in score that its step makes.

    Args:
        model: in eval mode, or without layers that mix samples; it is left alone.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        train: the N training points (x, y): a pair of tensors, a Dataset, or a DataLoader that keeps their order.
        test: points (x, y) to score on.
        lr: learning rate; that of the best model after one epoch is the one to take.
        score: ``score(outputs, y)`` on the test points, higher = better; None for the accuracy of class scores.
        tolerance, permutations, seed, workers, checkpoint, progress: as for :func:`tmc_shapley`.

    Raises:
        ValueError: empty data, samples that interact, a number out of range, or a score that is not finite.

    Example:
        >>> x, y = torch.randn(6, 4), torch.arange(6) % 3
        >>> result = gradient_shapley(nn.Linear(4, 3), nn.functional.cross_entropy, (x, y), (x, y), permutations=3)
        >>> result.values.shape, result.permutations
        (torch.Size([6]), 3)
    """
    check_call(model, loss_fn, train, name="train")
    check_in_order("train", train)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr!r}, expected a finite number > 0")
    sampling = Sampling(permutations, tolerance, seed, workers, checkpoint, progress)
    device = model_device(model)
    (x, y), (x_test, y_test) = ((t.to(device) for t in materialize(data)) for data in (train, test))
    game = _Epoch(lent(model), SampleLoss(loss_fn), (x, y), (x_test, y_test), lr, score or _accuracy)
    return sampling.run(game, len(x), f"G-Shapley, lr {lr!r}")


def _accuracy(output: Tensor, y: Tensor) -> Tensor:
    return (output.argmax(1) == y).double().mean()


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: is {number}, expected a finite number")
    return number


@dataclass(frozen=True)
class _Refitting:
    """Scores of models fitted to growing sets of points."""

    fit: Fit
    score: Score
    empty: float
    full: float
    truncation: float

    def __call__(self, order: Tensor) -> Tensor:
        contributions = torch.zeros(len(order), dtype=torch.float64)
        before = self.empty
        for m, point in enumerate(order.tolist(), 1):
            if abs(self.full - before) < self.truncation:
                break
            last = m == len(order)
            after = self.full if last else _finite("score", self.score(self.fit(order[:m].sort().values)))
            contributions[point] = after - before
            before = after
        return contributions


@dataclass(frozen=True)
class _Epoch:
    """Scores along one epoch of SGD."""

    model: nn.Module
    loss: SampleLoss
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    lr: float
    score: Callable[[Tensor, Tensor], Tensor | float]

    def __call__(self, order: Tensor) -> Tensor:
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        values, rest = split_values(self.model, names)
        leaves = {name: t.clone().requires_grad_() for name, t in values.items()}
        everything, parameters = {**rest, **leaves}, list(leaves.values())
        (x, y), (x_test, y_test) = self.train, self.test

        def scored() -> float:
            with torch.no_grad():
                return _finite("score", self.score(functional_call(self.model, everything, (x_test,)), y_test))

        contributions = torch.zeros(len(order), dtype=torch.float64)
        before = scored()
        for point in order.tolist():
            own = slice(point, point + 1)
            with torch.enable_grad():
                total = self.loss.total(functional_call(self.model, everything, (x[own],)), y[own])
            gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-self.lr)
            after = scored()
            contributions[point] = after - before
            before = after
        return contributions
