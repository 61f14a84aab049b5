"""What labels mean: where the classes are in a model's scores, and which labels count.

Labels are classes, one for each sample or for each of its positions; or yes-or-no answers, 0 or 1 for each of the
model's logits; or values, as many as the model returns (regression). A label of -100 stands for none, as in torch.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from unlearnx._batches import scores

IGNORED = -100


def class_axis(output: Any, y: Tensor) -> int | None:
    """The dimension of the classes in the scores of an output; None where y are no classes of them.

    Scores are (N, classes), (N, classes, ...) or (N, ..., classes), with classes (N,) or (N, ...), or probabilities of
    the shape of the scores. Where both orders fit, classes come first in a tensor, as torch's cross-entropy takes it,
    and last in an object with logits, as models of HuggingFace return it.
    """
    values = scores(output)
    last = values.dim() - 1
    if last < 1:
        return None
    if y.is_floating_point():
        return 1 if y.shape == values.shape and values.shape[1] > 1 else None
    orders = [1] if last == 1 else [1, last] if isinstance(output, Tensor) else [last, 1]
    fitting = (axis for axis in orders if values.shape[:axis] + values.shape[axis + 1 :] == y.shape)
    return next((axis for axis in fitting if values.shape[axis] > 1), None)


def is_binary(values: Tensor, y: Any, ignore_index: int = IGNORED) -> bool:
    """Whether y has an answer of 0 or 1 for each of the logits, or none where it is `ignore_index`."""
    if not isinstance(y, Tensor) or y.numel() != values.numel() or y.shape[:1] != values.shape[:1]:
        return False
    return bool(((y == 0) | (y == 1) | (y == ignore_index)).all())


def counted(y: Tensor, classes: int, ignore_index: int = IGNORED) -> Tensor:
    """Which labels are classes; the others are `ignore_index`.

    Raises:
        ValueError: a label is neither.
    """
    labelled = y != ignore_index
    outside = labelled & ((y < 0) | (y >= classes))
    if outside.any():
        raise ValueError(
            f"data: label {int(y[outside][0])} is out of range for {classes} classes, expected 0 to {classes - 1}, or "
            f"{ignore_index} for none"
        )
    return labelled


def predictions(output: Any, y: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """What a model predicts, shaped like the labels y: the class of the highest score, or 1 for a logit above 0.

    Raises:
        ValueError: the labels are values, which cannot be right or wrong, or do not fit the scores.
    """
    values = scores(output)
    axis = None if y.is_floating_point() else class_axis(output, y)
    if axis is not None:
        return values.argmax(axis)
    if is_binary(values, y, ignore_index):
        return (values > 0).reshape(y.shape).to(y.dtype)
    raise ValueError(
        f"data: labels are {y.dtype} of shape {list(y.shape)} with scores of shape {list(values.shape)}, expected a "
        "class for each sample or position, or 0 or 1 for each logit; values of a regression are not right or wrong"
    )


def labelled(output: Any, y: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Which of the labels y count: those that are not `ignore_index`.

    Raises:
        ValueError: a label is no class of the scores.
    """
    axis = None if y.is_floating_point() else class_axis(output, y)
    return y != ignore_index if axis is None else counted(y, scores(output).shape[axis], ignore_index)


def is_causal(x: Any, y: Any, ignore_index: int = IGNORED) -> bool:
    """Whether labels are the input tokens themselves, as causal language models of HuggingFace take them.

    The scores at a position then predict the token after it.
    """
    tokens = x.get("input_ids") if isinstance(x, dict) else None
    if not isinstance(tokens, Tensor) or not isinstance(y, Tensor) or tokens.shape != y.shape or y.dim() != 2:
        return False
    own = y != ignore_index
    return bool(own.any()) and bool((tokens == y)[own].all())


def following(y: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """For each position of texts (N, length), the label of the next one; `ignore_index` for the last."""
    shifted = y.roll(-1, 1)
    shifted[:, -1] = ignore_index
    return shifted


def guessing_loss(output: Any, y: Any) -> float | None:
    """Cross-entropy of guessing evenly, in nats: log(classes), or log 2 for yes and no; None for other labels."""
    values = scores(output)
    if not isinstance(y, Tensor):
        return None
    axis = None if y.is_floating_point() else class_axis(output, y)
    if axis is not None:
        return math.log(values.shape[axis])
    return math.log(2) if is_binary(values, y) else None
