"""Outputs of models on labelled data, batch by batch, and the probabilities and confidences they imply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._arguments import checked
from unlearnx._batches import Nest, moved, scores
from unlearnx._calls import run
from unlearnx._checks import check_at_least_one, known_as, model_device
from unlearnx._data import Data, batches
from unlearnx._labels import IGNORED, class_axis, counted, following, is_binary, is_causal
from unlearnx._losses import Loss, SampleLoss
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import evaluating

T = TypeVar("T")


def each_batch(
    models: Sequence[nn.Module],
    data: Data,
    batch_size: int | None,
    autocast: torch.dtype | None,
    measure: Callable[..., T],
    *,
    aligned: bool = False,
    names: Sequence[str] = (),
) -> list[T]:
    """The results of ``measure(*outputs, y)`` for every batch, in one pass over the data for all models.

    The models run in eval mode. Outputs and labels are on the device of the first model. Where labels are the input
    tokens themselves, `aligned` gives each position the label of the next, which its scores predict. `names` are those
    that the caller has for the models.
    """
    check_at_least_one(batch_size=batch_size)
    device = model_device(models[0])

    def output(name: str, model: nn.Module, order: ImageOrder, x: Nest) -> Any:
        own = model_device(model)
        with torch.autocast(own.type, autocast, enabled=autocast is not None), known_as(model=name):
            return moved(run(model, order(moved(x, own))), device)

    with ExitStack() as modes:
        lent = [modes.enter_context(evaluating(model)) for model in models]
        ordered = [
            (name, model, ImageOrder(model)) for name, model in zip(names or ["model"] * len(lent), lent, strict=True)
        ]
        return [
            measure(*(output(*own, x) for own in ordered), following(y) if aligned and is_causal(x, y) else y)
            for x, y in batches(data, batch_size, device, title="measurement")
        ]


def sample_losses(
    model: nn.Module, loss_fn: Loss, data: Data, *, batch_size: int | None = None, autocast: torch.dtype | None = None
) -> Tensor:
    """The loss of each sample, (N,), on the model's device; arguments as for :func:`each_batch`."""
    return torch.cat(each_batch((model,), data, batch_size, autocast, SampleLoss(loss_fn).each))


def log_probabilities(output: Any) -> Tensor:
    """Logarithms of the softmax of a model's scores (N, classes), float64; a score of -inf stands for probability 0.

    Raises:
        ValueError: the output has the wrong shape, or scores are NaN or +inf.
    """
    given = scores(output)
    if given.dim() != 2 or given.shape[1] < 2:
        raise ValueError(
            f"model: returned an output of shape {list(given.shape)}, expected scores (N, classes), classes >= 2"
        )
    logs = given.double().log_softmax(1)
    if logs.isnan().any():
        raise ValueError("model: returned scores that are NaN or infinite, expected finite scores")
    return logs


def answers(output: Any, y: Nest, ignore_index: int = IGNORED) -> tuple[Tensor, Tensor, Tensor]:
    """What a model says about each label: log-probabilities (N, P, K), labels (N, P), and which of them count (N, P).

    A sample has P labels of K classes each: one, or one for each of its positions; or P yes-or-no answers (K = 2).
    Labels that do not count are 0.

    Raises:
        ValueError: the labels are values, out of range or do not fit the scores, or scores are not finite.
    """
    if not isinstance(y, Tensor):
        raise ValueError(f"data: labels are a {type(y).__name__}, expected a tensor of classes")
    values, axis = scores(output), None if y.is_floating_point() else class_axis(output, y)
    if axis is not None:
        counts = counted(y, values.shape[axis], ignore_index).reshape(len(y), -1)
        by_position = values.movedim(axis, -1).reshape(-1, values.shape[axis])
        logs = log_probabilities(by_position).view(*counts.shape, -1)
    elif is_binary(values, y, ignore_index):
        counts = (y != ignore_index).reshape(len(y), -1)
        logits = values.double().reshape(len(y), -1)
        logs = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1)
    else:
        raise ValueError(
            f"data: labels are {y.dtype} of shape {list(y.shape)} with scores of shape {list(values.shape)}, expected "
            "class indices (N,) or one for each position, or 0 or 1 for each logit"
        )
    return logs, y.reshape(counts.shape).long().where(counts, 0), counts


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


@checked
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


@checked
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

    def confidence(output: Any, y: Tensor) -> Tensor:
        logs = log_probabilities(output)
        own = of_labels(logs, y)
        others = logs.scatter(1, y.long()[:, None], -torch.inf).logsumexp(1)
        return (own - others).cpu()

    return torch.cat(each_batch((model,), data, batch_size, autocast, confidence))
