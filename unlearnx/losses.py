"""Losses of each sample alone, for every method and engine: tensors, or what models of HuggingFace return.

Labels equal to `ignore_index` count nowhere: a sample without a label has a loss of 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx._batches import scores
from unlearnx._checks import check_fraction, check_integer, known_as, named, shown
from unlearnx._labels import IGNORED, class_axis
from unlearnx._per_sample import per_sample

PER = ("sample", "token")


@per_sample
def cross_entropy(
    output: Any,
    y: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of each sample, in nats, (N,); of several positions, the mean over those that have a label.

    Args:
        output: scores (N, classes), (N, classes, ...) or (N, ..., classes), or an object or mapping with such logits.
            Where both orders fit the labels, classes come first in a tensor and last in logits.
        y: classes, int64 (N,) or (N, ...); or probabilities of classes, shaped like the scores.
        weight: factor of the loss of each class, (classes,).
        ignore_index: the label of what has none.
        label_smoothing: probability that is spread evenly over the classes, from 0 to 1.

    Raises:
        ValueError: the labels do not fit the scores.

    Example:
        >>> output, y = torch.zeros(3, 4), torch.tensor([0, 3, -100])
        >>> cross_entropy(output, y)  # log 4, and 0 for the sample without a label
        tensor([1.3863, 1.3863, 0.0000])
    """
    check_integer(ignore_index=ignore_index)
    check_fraction(label_smoothing=label_smoothing)
    values, axis = _given(output, y), class_axis(output, y)
    if axis is None:
        raise ValueError(
            f"y: has labels of shape {list(y.shape)}, expected one class for each position of scores of shape "
            f"{list(values.shape)}"
        )
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != values.shape[axis : axis + 1]):
        what = f"of shape {list(weight.shape)}" if isinstance(weight, Tensor) else shown(weight)
        raise ValueError(f"weight is {what}, expected a tensor of {values.shape[axis]}, one number for each class")
    values = values.movedim(axis, 1)
    if y.is_floating_point():
        y = y.movedim(axis, 1)
    with named(lambda: f"y: expected classes, 0 to {values.shape[1] - 1}, or their probabilities, got {y.dtype}"):
        losses = F.cross_entropy(
            values, y, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
        )
    return mean_of_labelled(losses, y, ignore_index)


@overload
def causal_lm(*, ignore_index: int = ..., per: str = ...) -> Callable[[Any, Tensor], Tensor]: ...


@overload
def causal_lm(output: Any, y: Tensor, *, ignore_index: int = ..., per: str = ...) -> Tensor: ...


@per_sample
def causal_lm(output: Any = None, y: Tensor | None = None, *, ignore_index: int = IGNORED, per: str = "sample") -> Any:
    """Cross-entropy of each text's next tokens, in nats, (N,): the scores at a position predict the token after it.

    Without an output and labels, the loss function of these settings: ``loss_fn=causal_lm(per="token")``.

    Args:
        output: scores (N, length, tokens), or an object or mapping with such logits.
        y: tokens (N, length), the inputs themselves; `ignore_index` where no prediction counts, as in prompts and
            padding.
        ignore_index: the label of what has none.
        per: ``"sample"``: the mean over a text's labelled tokens, so that all texts weigh the same; ``"token"``: their
            sum, so that all tokens do.

    Raises:
        ValueError: shapes do not fit, or `per` is unknown.

    Example:
        >>> logits, y = torch.zeros(2, 5, 8), torch.tensor([[1, 2, 3, 4, 5], [-100, -100, -100, 2, 3]])
        >>> causal_lm(logits, y, per="token")  # 4 and 2 tokens, of log 8 each
        tensor([8.3178, 4.1589])
    """
    if per not in PER:
        raise ValueError(f"per is {per!r}, expected one of {', '.join(map(repr, PER))}")
    if output is None or y is None:
        return partial(causal_lm, ignore_index=ignore_index, per=per)
    check_integer(ignore_index=ignore_index)
    values = _given(output, y)
    if values.dim() != 3 or y.shape != values.shape[:2] or y.is_floating_point():
        raise ValueError(
            f"y: has labels of {y.dtype} and shape {list(y.shape)} with scores of shape {list(values.shape)}, expected "
            "tokens (N, length) and scores (N, length, tokens)"
        )
    # The last position predicts nothing. A label that says so costs less than a copy of all other scores.
    following = torch.cat([y[:, 1:], torch.full_like(y[:, :1], ignore_index)], 1)
    losses = F.cross_entropy(
        values.flatten(0, 1), following.flatten(), ignore_index=ignore_index, reduction="none"
    ).view(y.shape)
    return losses.sum(1) if per == "token" else mean_of_labelled(losses, following, ignore_index)


@per_sample
def binary_cross_entropy(output: Any, y: Tensor, *, ignore_index: int = IGNORED) -> Tensor:
    """Cross-entropy of each sample's yes-or-no answers, in nats, (N,): the mean over its labels.

    Args:
        output: logits of yes, (N,), (N, 1) or (N, labels), or an object or mapping with such logits.
        y: 0 or 1, or a probability, as many as logits.
        ignore_index: the label of what has none.

    Raises:
        ValueError: there are not as many labels as logits.

    Example:
        >>> binary_cross_entropy(torch.zeros(2, 3), torch.tensor([[0, 1, 1], [1, -100, -100]]))  # log 2
        tensor([0.6931, 0.6931])
    """
    check_integer(ignore_index=ignore_index)
    values, y = _matched(output, y)
    target = y.to(values.dtype).where(y != ignore_index, 0)
    losses = F.binary_cross_entropy_with_logits(values, target, reduction="none").where(y != ignore_index, 0)
    return mean_of_labelled(losses, y, ignore_index)


@per_sample
def mse(output: Any, y: Tensor) -> Tensor:
    """Squared error of each sample, in the labels' unit squared, (N,): the mean over its values.

    Args:
        output: predictions (N, ...), or an object or mapping with them as logits.
        y: as many values.

    Raises:
        ValueError: there are not as many values as predictions.

    Example:
        >>> mse(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
        tensor([0., 4.])
    """
    values, y = _matched(output, y)
    return (values - y.to(values.dtype)).square().reshape(len(y), -1).mean(1)


def _given(output: Any, y: Any) -> Tensor:
    """The scores of an output, where the labels are a tensor too."""
    if not isinstance(y, Tensor) or y.layout != torch.strided or y.is_complex():
        what = f"of {y.dtype} and layout {y.layout}" if isinstance(y, Tensor) else shown(y)
        raise TypeError(f"y is {what}, expected a dense tensor of real numbers")
    with known_as(model="output"):
        found = scores(output)
    if found.is_complex():
        raise TypeError(f"output is of {found.dtype}, expected real numbers")
    return found


def _matched(output: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and labels of one shape."""
    values = _given(output, y)
    if values.shape[:1] != y.shape[:1] or values.numel() != y.numel():
        raise ValueError(
            f"y: has labels of shape {list(y.shape)} with outputs of shape {list(values.shape)}, expected as many"
        )
    return values, y.reshape(values.shape)


def mean_of_labelled(losses: Tensor, y: Tensor, ignore_index: int) -> Tensor:
    """The mean of each sample's losses (N, ...) over the positions that have a label; 0 where none has, (N,)."""
    if losses.dim() == 1:
        return losses
    if y.shape != losses.shape:  # probabilities of classes
        return losses.flatten(1).mean(1)
    return losses.flatten(1).sum(1) / (y != ignore_index).flatten(1).sum(1).clamp(min=1)
