"""Data Shapley: the value of training samples for any model, estimated from permutations of the samples.

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

from unlearnx._arguments import checked
from unlearnx._batches import Nest, arguments, count, moved, take
from unlearnx._calls import check_call
from unlearnx._checks import LARGEST, check_at_least_one, check_at_least_zero, model_device, named, select_params, shown
from unlearnx._copies import lent
from unlearnx._data import Data, check_in_order, materialize
from unlearnx._functional import functional_call
from unlearnx._labels import labelled, predictions
from unlearnx._losses import Loss, SampleLoss
from unlearnx.attribution.permutations import Sampling, ShapleyResult, reproducible, stream_seed
from unlearnx.curvature.samples import split_values

Fit = Callable[[Tensor], Any]
Score = Callable[[Any], float]
FULL_FIT_STREAM = 2**32 - 1  # random stream for the fit on all samples; permutation p uses stream p


@checked
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
    """Shapley values of training samples by truncated Monte Carlo (TMC); higher = more valuable.

    In a random permutation, samples join the training set one by one. A sample's contribution is the change in score
    after the model is fitted again with it. Results do not depend on `workers` or on interruptions: permutation p, and
    torch's random numbers in its fits, depend on `seed` and p only, and torch uses one thread.

    Args:
        fit: ``fit(indices)`` returns a model trained on these samples; indices are int64 (m,), ascending, m >= 1.
        score: ``score(fitted)`` is its performance on held-out data, higher = better.
        n_points: number of training samples.
        empty_score: score of a model without training samples: for an accuracy, that of guessing.
        tolerance: stop when no standard error is above it, after at least 100 permutations.
        permutations: maximal number of permutations.
        truncation: when a score is closer than this to the score of all samples, the other samples of the permutation
            get a contribution of zero without a fit. This saves most fits, but introduces a bias that the standard
            errors do not show; 0 evaluates every permutation in full.
        seed: seed of the permutations.
        workers: number of processes. Where processes are not forked (on other systems than Linux, or if CUDA is in
            use), `fit` and `score` must be module-level functions, and the script needs an
            ``if __name__ == "__main__"``.
        checkpoint: file to save to every few seconds and to resume from; it is replaced as a whole.
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
    with reproducible(stream_seed(seed, FULL_FIT_STREAM)):
        full = _finite("score", _scored(fit, score, torch.arange(n_points)))
    game = _RefittingGame(fit, score, _finite("empty_score", empty_score), full, truncation)
    key = f"TMC-Shapley, from {empty_score!r} to {full!r}, truncation {truncation!r}"
    return sampling.run(game, n_points, key)


@checked
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
    """Shapley values of training samples for one epoch of SGD (G-Shapley); higher = more valuable.

    A permutation of the samples is one epoch of SGD with batch size 1, starting from the model's present weights (of an
    untrained model, or of one to repair). A sample's contribution is the change in score by its step.

    Args:
        model: in eval mode, or without layers such as BatchNorm in which samples influence each other; it is not
            changed.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        train: the N training samples (x, y): a pair of tensors, a Dataset, or a DataLoader that keeps their order.
        test: samples (x, y) to score on.
        lr: learning rate; choose the one that gives the best model after one epoch.
        score: ``score(outputs, y)`` on the test samples, higher = better; None for the accuracy of class scores.
        tolerance, permutations, seed, workers, checkpoint, progress: as for :func:`tmc_shapley`.

    Raises:
        ValueError: empty data, a model in which samples influence each other, a number out of range, or a score that is
            not finite.

    Example:
        >>> x, y = torch.randn(6, 4), torch.arange(6) % 3
        >>> result = gradient_shapley(nn.Linear(4, 3), nn.functional.cross_entropy, (x, y), (x, y), permutations=3)
        >>> result.values.shape, result.permutations
        (torch.Size([6]), 3)
    """
    check_call(model, loss_fn, train, name="train")
    check_call(model, None, test, name="test")
    select_params(model, None)
    check_in_order("train", train)
    if not 0 < lr <= LARGEST:
        raise ValueError(f"lr is {lr!r}, expected a number > 0 that is finite in single precision")
    sampling = Sampling(permutations, tolerance, seed, workers, checkpoint, progress)
    device = model_device(model)
    own, held_out = (tuple(moved(nest, device) for nest in materialize(data)) for data in (train, test))
    game = _SGDGame(lent(model), SampleLoss(loss_fn), own, held_out, lr, score or _accuracy)
    return sampling.run(game, count(own[1]), f"G-Shapley, lr {lr!r}")


def _accuracy(output: Any, y: Any) -> Tensor:
    counts = labelled(output, y)
    return (predictions(output, y) == y)[counts].double().mean()


def _scored(fit: Fit, score: Score, indices: Tensor) -> Any:
    with named(lambda: "fit: expected a function fit(indices) that returns a model"):
        fitted = fit(indices)
    with named(lambda: "score: expected a function score(fitted) that returns a number"):
        return score(fitted)


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: is {shown(value)}, expected a number") from error
    if not math.isfinite(number):
        raise ValueError(f"{name}: is {number}, expected a finite number")
    return number


@dataclass(frozen=True)
class _RefittingGame:
    """Contributions in TMC-Shapley: score changes of models fitted to growing sets of samples."""

    fit: Fit
    score: Score
    empty: float
    full: float
    truncation: float

    def __call__(self, order: Tensor) -> Tensor:
        contributions = torch.zeros(len(order), dtype=torch.float64)
        before = self.empty
        for m, sample in enumerate(order.tolist(), 1):
            if abs(self.full - before) < self.truncation:
                break
            last = m == len(order)
            after = self.full if last else _finite("score", _scored(self.fit, self.score, order[:m].sort().values))
            contributions[sample] = after - before
            before = after
        return contributions


@dataclass(frozen=True)
class _SGDGame:
    """Contributions in G-Shapley: score changes along one epoch of SGD."""

    model: nn.Module
    loss: SampleLoss
    train: tuple[Nest, Nest]
    test: tuple[Nest, Nest]
    lr: float
    score: Callable[[Any, Any], Tensor | float]

    def __call__(self, order: Tensor) -> Tensor:
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        values, rest = split_values(self.model, names)
        leaves = {name: t.clone().requires_grad_() for name, t in values.items()}
        everything, parameters = {**rest, **leaves}, list(leaves.values())
        (x, y), (x_test, y_test) = self.train, self.test

        def current_score() -> float:
            with torch.no_grad():
                output = functional_call(self.model, everything, *arguments(x_test))
                with named(lambda: "score: expected a function score(outputs, y)"):
                    value = self.score(output, y_test)
                return _finite("score", value)

        contributions = torch.zeros(len(order), dtype=torch.float64)
        before = current_score()
        for sample in order.tolist():
            index = slice(sample, sample + 1)
            with torch.enable_grad():
                output = functional_call(self.model, everything, *arguments(take(x, index)))
                total = self.loss.total(output, take(y, index))
            gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-self.lr)
            after = current_score()
            contributions[sample] = after - before
            before = after
        return contributions
