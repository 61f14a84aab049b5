"""Outputs of models on labelled data, batch by batch, and the probabilities and confidences they imply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor, nn

from unlearnx._calls import run
from unlearnx._checks import check_at_least_one, check_autocast, model_device
from unlearnx._data import Data, batches
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import evaluating

T = TypeVar("T")


def each_batch(
    models: Sequence[nn.Module],
    data: Data,
    batch_size: int | None,
    autocast: torch.dtype | None,
    measure: Callable[..., T],
) -> list[T]:
    """The results of ``measure(*outputs, y)`` for every batch, in one pass over the data for all models.

    The models run in eval mode. Outputs and labels are on the device of the first model.
    """
    check_autocast(autocast=autocast)
    check_at_least_one(batch_size=batch_size)
    device = model_device(models[0])

    def output(model: nn.Module, order: ImageOrder, x: Tensor) -> Tensor:
        own = model_device(model)
        with torch.autocast(own.type, autocast, enabled=autocast is not None):
            return run(model, order(x.to(own))).to(device)

    with ExitStack() as modes:
        lent = [modes.enter_context(evaluating(model)) for model in models]
        ordered = [(model, ImageOrder(model)) for model in lent]
        return [measure(*(output(*pair, x) for pair in ordered), y) for x, y in batches(data, batch_size, device)]


def log_probabilities(output: Tensor) -> Tensor:
    """Logarithms of the softmax of scores (N, classes), float64; a score of -inf stands for probability 0.

    Raises:
        ValueError: the output has the wrong shape, or scores are NaN or +inf.
    """
    if output.dim() != 2 or output.shape[1] < 2:
        raise ValueError(
            f"model: returned an output of shape {list(output.shape)}, expected scores (N, classes), classes >= 2"
        )
    scores = output.double()
    logs = scores.log_softmax(1)
    if logs.isnan().any():
        raise ValueError("model: returned scores that are NaN or infinite, expected finite scores")
    return logs


def predicted_classes(output: Tensor) -> Tensor:
    """The class with the highest score of every sample, (N,), or of its every position, from scores (N, classes, ...).

    Raises:
        ValueError: the output has another shape, or a score is NaN.
    """
    if output.dim() < 2 or output.shape[1] == 0:
        raise ValueError(f"model: returned an output of shape {list(output.shape)}, expected scores (N, classes)")
    if output.isnan().any():
        raise ValueError("model: returned scores that are NaN, expected finite ones")
    return output.argmax(1)


def of_labels(values: Tensor, y: Tensor) -> Tensor:
    """The entry of each row of `values` (N, classes) at its label, (N,).

    Raises:
        ValueError: the labels are not class indices (N,), or out of range.
    """
    if y.shape != values.shape[:1] or y.is_floating_point():
        raise ValueError(f"data: labels are {y.dtype} of shape {list(y.shape)}, expected class indices (N,)")
    outside = (y < 0) | (y >= values.shape[1])
    if outside.any():
        raise ValueError(f"data: label {int(y[outside][0])} is out of range for {values.shape[1]} classes")
    return values.gather(1, y.long()[:, None]).squeeze(1)


def probabilities(
    model: nn.Module, data: Data, *, batch_size: int | None = None, autocast: torch.dtype | None = None
) -> Tensor:
    """Softmax of the scores of every sample, float32 (N, classes) on the CPU, in the order of the data.

    Args:
        model: maps x to class scores (N, classes).
        data: pairs (x, y); the labels are not read.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ValueError: the output has the wrong shape, or scores are not finite.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> torch.allclose(probabilities(model, (x, y)), model(x).softmax(1))
        True
    """
    return torch.cat(
        each_batch((model,), data, batch_size, autocast, lambda out, y: log_probabilities(out).exp().float().cpu())
    )


def logit_confidence(
    model: nn.Module, data: Data, *, batch_size: int | None = None, autocast: torch.dtype | None = None
) -> Tensor:
    """Logit of the probability of every label, ``ln(p_y / (1 - p_y))`` in nats, float64 (N,) on the CPU.

    Over models trained alike it is close to normally distributed, which probabilities and losses are not. It is
    computed from log-probabilities, so it stays exact where ``1 - p_y`` would round to 0. Arguments as for
    :func:`probabilities`.

    Raises:
        ValueError: output or labels have the wrong shape, labels are out of range, or scores are not finite.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022, section IV-C.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> p = probabilities(model, (x, y))[torch.arange(20), y]
        >>> torch.allclose(logit_confidence(model, (x, y)).float(), (p / (1 - p)).log(), atol=1e-4)
        True
    """

    def confidence(output: Tensor, y: Tensor) -> Tensor:
        logs = log_probabilities(output)
        own = of_labels(logs, y)
        others = logs.scatter(1, y.long()[:, None], -torch.inf).logsumexp(1)
        return (own - others).cpu()

    return torch.cat(each_batch((model,), data, batch_size, autocast, confidence))
