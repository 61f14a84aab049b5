"""Influence scores: how much each training sample is to blame for a model's failures.

The failures are samples that the model gets wrong, here with their correct labels. The posterior of the weights is
taken as a Gaussian with the trained weights theta as mode and with precision ``P = N (F + damping)``, where F is the
mean Fisher diagonal of the N training samples. Let theta_+F be the mode of the posterior after the failures are added
to the data. The score of a training sample z is how much less likely z becomes,

    r(z) = log p(z | theta) - log p(z | theta_+F)    (in nats if the loss is a cross-entropy).

A high score means that z contradicts the correct labels of the failures, so that forgetting z helps to correct them.
The loss is taken as -log p throughout.

Source: Tanno et al., "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._batches import arguments
from unlearnx._calls import check_call
from unlearnx._checks import Params, check_at_least_one, check_finite, known_as, model_device
from unlearnx._copies import lent
from unlearnx._data import Data, batches, check_in_order, materialize, size
from unlearnx._functional import functional_call
from unlearnx._losses import Loss, SampleLoss
from unlearnx._progress import progress_bar
from unlearnx._vectors import Vector
from unlearnx.curvature import fisher_diagonal, grad_difference, per_sample_grad_dot
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.samples import split_values
from unlearnx.ops._dtypes import compute_dtype


@checked
def linear_influence(
    model: nn.Module,
    loss_fn: Loss,
    train: Data,
    failures: Data,
    *,
    damping: float | None = None,
    params: Params = None,
    batch_size: int | None = None,
    fisher_type: str = "empirical",
) -> Tensor:
    """Influence score of each training sample, to first order in one natural-gradient step.

    The step is ``theta_+F = theta - P^-1 g``, where g is the sum of the failures' loss gradients, so that
    ``r(z) = -<grad loss(z), P^-1 g>``. This takes one pass over the training data for the Fisher diagonal and one for
    the N inner products (:func:`unlearnx.curvature.per_sample_grad_dot`).

    Args:
        model: the trained model, in eval mode; it is not changed.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        train: the N training samples (x, y), with the labels that the model was trained on: a pair of tensors, a
            Dataset, or a DataLoader that keeps their order.
        failures: samples (x, y) that the model gets wrong, with their correct labels.
        damping: added to the mean Fisher diagonal; None for the mean of its entries.
        params: parameters that the step changes, as in :func:`unlearnx.curvature.fisher_diagonal`.
        batch_size: most samples per pass.
        fisher_type: as in :func:`unlearnx.curvature.fisher_diagonal`; ``"mc"`` draws the same labels on every call.

    Returns:
        (N,), higher = more to blame, in float32 (float64 where a parameter is), on the model's device.

    Raises:
        ValueError: empty data, a DataLoader that shuffles, a model in which samples influence each other, a damping
            that is not above zero, or scores that are not finite.

    Example:
        >>> x, y = torch.randn(30, 8), torch.arange(30) % 3
        >>> failures = torch.randn(5, 8), torch.arange(5) % 3  # samples the model gets wrong, with their correct labels
        >>> blame = linear_influence(nn.Linear(8, 3), nn.functional.cross_entropy, (x, y), failures)
        >>> blame.topk(3).indices.shape  # the three most to blame
        torch.Size([3])
    """
    _check_positive(damping=damping)
    check_in_order("train", train)
    precision = _precision(model, loss_fn, train, 1.0, damping, params, batch_size, fisher_type)
    with known_as(old="failures"):
        failure_gradient = grad_difference(model, loss_fn, failures, params=params, batch_size=batch_size)
    step = {name: -g / precision[name] for name, g in failure_gradient.items()}
    with known_as(data="train"):
        return per_sample_grad_dot(model, loss_fn, train, step, params=params, batch_size=batch_size)


@checked
def ewc_influence(
    model: nn.Module,
    loss_fn: Loss,
    train: Data,
    failures: Data,
    *,
    strength: float = 1.0,
    l2: float | None = None,
    steps: int = 20,
    lr: float = 1.0,
    params: Params = None,
    batch_size: int | None = None,
    fisher_type: str = "empirical",
    progress: bool = False,
) -> Tensor:
    """Influence score of each training sample, from its loss before and after the model is trained on the failures.

    theta_+F minimises the sum of the failures' losses plus ``N/2 sum_k (strength F_k + l2) (theta'_k - theta_k)^2``,
    the elastic weight consolidation (EWC) penalty of all N training samples plus an L2 penalty. Every step is
    preconditioned by these penalties, ``theta' <- theta' - lr P^-1 grad``; with ``lr=1, strength=1`` the first step is
    that of :func:`linear_influence`. A step that does not lower the objective, or gives a value that is not finite, is
    undone and repeated with half the size. The penalty therefore never exceeds the failures' initial losses, for any
    `lr`.

    Args:
        model, loss_fn, train, failures, params, batch_size, fisher_type: see :func:`linear_influence`.
        strength: factor of the Fisher diagonal; with smaller values the model changes more.
        l2: factor of the L2 penalty; None for `strength` times the mean of the Fisher diagonal's entries.
        steps: passes over the failures, including steps that are undone.
        lr: initial step size; 1 is a full natural-gradient step.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Returns:
        (N,), ``r(z)`` itself, higher = more to blame, in float32 (float64 where a parameter is), on the model's device.

    Raises:
        ValueError: as for :func:`linear_influence`, or a number that is not above zero.

    Example:
        >>> x, y = torch.randn(30, 8), torch.arange(30) % 3
        >>> failures = torch.randn(5, 8), torch.arange(5) % 3  # samples the model gets wrong, with their correct labels
        >>> ewc_influence(nn.Linear(8, 3), nn.functional.cross_entropy, (x, y), failures, steps=5).shape
        torch.Size([30])
    """
    _check_positive(strength=strength, l2=l2, lr=lr)
    check_at_least_one(steps=steps)
    check_in_order("train", train)
    precision = _precision(model, loss_fn, train, strength, l2, params, batch_size, fisher_type)
    objective = _Objective(model, loss_fn, failures, precision, batch_size)
    with progress_bar("EWC influence", steps, progress) as advance:
        repaired = _descend(objective, steps, lr, advance)
    before, after = (_losses(model, loss_fn, train, values, batch_size) for values in (objective.origin, repaired))
    scores = after - before
    check_finite("scores", [("train", scores)])
    return scores


def _check_positive(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}, expected a finite number > 0")


def _precision(
    model: nn.Module,
    loss_fn: Loss,
    train: Data,
    strength: float,
    damping: float | None,
    params: Params,
    batch_size: int | None,
    fisher_type: str,
) -> Vector:
    """``N (strength F + damping)`` for every parameter; damping None is `strength` times the mean entry of F."""
    with known_as(data="train"):
        fisher = fisher_diagonal(
            model,
            loss_fn,
            train,
            params=params,
            fisher_type=fisher_type,
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(0),
        )
    if damping is None:
        entries = sum(t.numel() for t in fisher.values())
        damping = strength * sum(float(t.sum(dtype=torch.float64)) for t in fisher.values()) / entries
        if damping == 0:
            raise ValueError(
                "train: the Fisher diagonal is zero, no loss depends on the parameters; give a damping or l2 > 0"
            )
    n = size(train)
    return {name: n * (strength * t + damping) for name, t in fisher.items()}


class _Objective:
    """The failures' summed losses plus ``1/2 sum_k P_k (theta'_k - theta_k)^2``.

    Attributes:
        origin: theta, in the dtype of P.
        precision: P.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss, failures: Data, precision: Vector, batch_size: int | None):
        check_call(model, loss_fn, failures, name="failures")
        names = list(precision)
        frozen_prefix = FrozenPrefix(model, names, failures)
        self._model, self._loss, self._batch_size = lent(frozen_prefix.head), SampleLoss(loss_fn), batch_size
        self._data = frozen_prefix.features(materialize(failures), batch_size=batch_size)
        self._values, self._rest = split_values(self._model, names)
        self.origin = {name: t.to(compute_dtype(t)) for name, t in self._values.items()}
        self.precision = precision

    def __call__(self, parameters: Vector) -> tuple[float, Vector]:
        """Value and gradient."""
        leaves = {name: t.detach().to(self._values[name].dtype).requires_grad_() for name, t in parameters.items()}
        gradient = {name: self.precision[name] * (t - self.origin[name]) for name, t in parameters.items()}
        value = sum(float((g * (parameters[name] - self.origin[name])).sum()) for name, g in gradient.items()) / 2
        for x, y in batches(self._data, self._batch_size, model_device(self._model)):
            with torch.enable_grad():
                total = self._loss.total(functional_call(self._model, {**self._rest, **leaves}, *arguments(x)), y)
                parts = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            value += float(total.detach())
            for name, part in zip(leaves, parts, strict=True):
                gradient[name] += part
        return value, gradient


def _descend(objective: _Objective, steps: int, lr: float, advance: Callable[[int], None]) -> Vector:
    """The parameters with the lowest objective found in `steps` preconditioned gradient steps."""
    best = objective.origin
    value, gradient = objective(best)
    if not math.isfinite(value):
        raise ValueError(f"failures: their summed loss is {value}, expected a finite one")
    for _ in range(steps):
        trial = {name: t - lr * gradient[name] / objective.precision[name] for name, t in best.items()}
        trial_value, trial_gradient = objective(trial)
        if trial_value < value:  # false for NaN
            best, value, gradient = trial, trial_value, trial_gradient
        else:
            lr /= 2
        advance(1)
    return best


def _losses(model: nn.Module, loss_fn: Loss, data: Data, parameters: Vector, batch_size: int | None) -> Tensor:
    """The loss of every sample with the parameters of `parameters`, (N,)."""
    model, loss = lent(model), SampleLoss(loss_fn)
    values, rest = split_values(model, list(parameters))
    values = {name: parameters[name].to(t.dtype) for name, t in values.items()}
    dtype = next(iter(parameters.values())).dtype
    with torch.no_grad():
        parts = [
            loss.each(functional_call(model, {**rest, **values}, *arguments(x)), y).to(dtype)
            for x, y in batches(data, batch_size, model_device(model))
        ]
    return torch.cat(parts)
