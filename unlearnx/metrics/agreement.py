"""Distances between the predictions of two models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._batches import scores
from unlearnx._checks import known_as
from unlearnx._data import Data, size
from unlearnx.metrics.outputs import each_batch, log_probabilities

VARIANTS = ("standard", "bad_teacher")


@checked
def activation_distance(
    a: nn.Module, b: nn.Module, data: Data, *, batch_size: int | None = None, autocast: torch.dtype | None = None
) -> float:
    """Mean over samples of the Euclidean distance of two models' probabilities, ``||p_a - p_b||_2``, 0 to sqrt(2).

    Args:
        a: maps x to class scores (N, classes), such as an unlearned model.
        b: another such model, usually the retrained one: 0 is then ideal.
        data: pairs (x, y), usually the forget set; the labels are not read.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ValueError: the outputs are not scores (N, classes) for the same classes, or not finite.

    Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023.

    Example:
        >>> x, y = torch.randn(20, 8), torch.arange(20) % 3
        >>> model = nn.Linear(8, 3)
        >>> activation_distance(model, model, (x, y)), activation_distance(model, nn.Linear(8, 3), (x, y)) > 0
        (0.0, True)
    """

    def distance(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() - log_q.exp()).norm(dim=1)

    return _mean(a, b, data, batch_size, autocast, distance)


@checked
def js_divergence(
    a: nn.Module,
    b: nn.Module,
    data: Data,
    *,
    variant: str = "standard",
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """Jensen-Shannon divergence of two models' predictions, in nats, from 0 to ln 2, symmetric in `a` and `b`.

    Args:
        a: maps x to class scores (N, classes).
        b: another such model.
        data: pairs (x, y); the labels are not read.
        variant: ``"standard"``: mean over samples of ``1/2 KL(p||m) + 1/2 KL(q||m)`` with ``m = (p + q) / 2``.
            ``"bad_teacher"``: what the public code of "Can Bad Teaching Induce Forgetting?" computes under that name,
            ``1/2 KL(m||p) + 1/2 KL(m||q)`` averaged over samples and classes: the arguments of KL are swapped, so that
            it has no upper limit, and it shrinks as classes are added. For comparison with published numbers only.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ValueError: the variant is unknown, or the outputs are not scores (N, classes) for the same classes, or not
            finite.

    Source: Lin, "Divergence measures based on the Shannon entropy", 1991.

    Example:
        >>> x, y = torch.randn(20, 8), torch.arange(20) % 3
        >>> a, b = nn.Linear(8, 3), nn.Linear(8, 3)
        >>> 0 < js_divergence(a, b, (x, y)) < 0.6931  # ln 2
        True
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {', '.join(map(repr, VARIANTS))}")

    def bad_teacher(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        return (_relative(log_m, log_p) + _relative(log_m, log_q)).mean(1).clamp(min=0) / 2

    return _mean(a, b, data, batch_size, autocast, divergence if variant == "standard" else bad_teacher)


@checked
def zrf(
    model: nn.Module,
    random_model: nn.Module,
    forget: Data,
    *,
    variant: str = "standard",
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """Zero retrain forgetting: ``1 - js_divergence(model, random_model, forget)``.

    It is 1 where the predictions on the forget set are those of a network that was never trained. It can be computed
    without a retrained model, but 1 is not the goal: a retrained model that generalises to the forget set is well below
    1. Compare with its score where there is one.

    Args:
        model: maps x to class scores (N, classes).
        random_model: a network with random weights, usually of the same architecture.
        forget: pairs (x, y); the labels are not read.
        variant: as for :func:`js_divergence`; ``"bad_teacher"`` gives published numbers.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ValueError: as for :func:`js_divergence`.

    Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023.

    Example:
        >>> x, y = torch.randn(20, 8), torch.arange(20) % 3
        >>> random_model = nn.Linear(8, 3)
        >>> zrf(random_model, random_model, (x, y))
        1.0
    """
    with known_as(a="model", b="random_model"):
        return 1 - js_divergence(model, random_model, forget, variant=variant, batch_size=batch_size, autocast=autocast)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of each row, from log-probabilities (N, classes), (N,)."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_relative(log_p, log_m) + _relative(log_q, log_m)).sum(1).clamp(min=0) / 2


def _relative(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Terms ``p ln(p / q)`` of a Kullback-Leibler divergence; 0 where p is 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0)


def _mean(
    a: nn.Module,
    b: nn.Module,
    data: Data,
    batch_size: int | None,
    autocast: torch.dtype | None,
    compare: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Mean over samples of ``compare(log_p_a, log_p_b)``, which returns (N,) for a batch of log-probabilities."""

    def total(output_a: Any, output_b: Any, y: Any) -> Tensor:
        output_a, output_b = scores(output_a), scores(output_b)
        if output_a.shape != output_b.shape:
            raise ValueError(
                f"b: returned an output of shape {list(output_b.shape)}, expected {list(output_a.shape)} as from a"
            )
        with known_as(model="a"):
            log_p = log_probabilities(output_a)
        with known_as(model="b"):
            return compare(log_p, log_probabilities(output_b)).sum()

    return float(sum(each_batch((a, b), data, batch_size, autocast, total, names=("a", "b")))) / size(data)
