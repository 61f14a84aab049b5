"""Measures of a classifier on labelled data. The model runs in eval mode and returns to the mode it was in.

Samples may have a label for each position: scores (N, classes, ...) or (N, ..., classes), and labels (N, ...). Each
position then counts once. Where both orders fit, classes come first in a tensor and last in an object with logits.
Labels of 0 and 1 for single logits (N,) or (N, 1), or for each of several logits (N, labels), are yes-or-no answers: a
logit above 0 is a yes, and each answer counts once. Labels of `ignore_index` count nowhere. Other labels that are no
classes are refused, as are values of a regression. Where the labels of a mapping are its ``input_ids``, as causal
language models take them, the scores at a position are compared with the next label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._batches import scores
from unlearnx._checks import check_at_least_one, check_integer
from unlearnx._data import Data, size
from unlearnx._labels import IGNORED, class_axis, is_binary, labelled, predictions
from unlearnx._losses import Loss, SampleLoss
from unlearnx.metrics.outputs import each_batch


def _predictions(
    model: nn.Module,
    data: Data,
    batch_size: int | None,
    autocast: torch.dtype | None,
    ignore_index: int = IGNORED,
    known: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Predictions for the labels that count, and these labels, each in one dimension, in the order of the data.

    Raises:
        ValueError: a class of `known` is none of the model's; and as for :func:`unlearnx._labels.predictions`.
    """

    def pair(output: Any, y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            raise ValueError(f"data: labels are a {type(y).__name__}, expected a tensor")
        counts = labelled(output, y, ignore_index)
        axis = class_axis(output, y)
        classes = 2 if axis is None else scores(output).shape[axis]
        if not all(0 <= c < classes for c in known):
            raise ValueError(f"classes is {tuple(known)}, expected two from 0 to {classes - 1}")
        return torch.stack([predictions(output, y, ignore_index)[counts].long(), y[counts].long()])

    predicted, labels = torch.cat(each_batch((model,), data, batch_size, autocast, pair, aligned=True), 1)
    if not len(labels):
        raise ValueError(f"data: every label is {ignore_index}, which is none, expected at least one that counts")
    return predicted, labels


@checked
def predict(
    model: nn.Module, data: Data, *, batch_size: int | None = None, autocast: torch.dtype | None = None
) -> Tensor:
    """Predicted class of every sample, int64 (N,), or of each of its positions, (N, ...), on the model's device.

    Args:
        model: maps x to class scores (N, classes), (N, classes, ...) or (N, ..., classes), or to logits of yes.
        data: samples (x, y); of the labels, the shape tells what the scores mean, and for single logits whether
            they are 0 and 1.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Example:
        >>> x, y = torch.randn(6, 4), torch.arange(6) % 3
        >>> predict(nn.Linear(4, 3), (x, y)).shape
        torch.Size([6])
    """

    def classes(output: Any, y: Any) -> Tensor:
        values = scores(output)
        axis = class_axis(output, y) if isinstance(y, Tensor) and not y.is_floating_point() else None
        if axis is not None:
            return values.argmax(axis)
        unread = not is_binary(values, y) and values.dim() > 1 and values.shape[1] > 1
        return values.argmax(1) if unread else predictions(output, y)

    return torch.cat(each_batch((model,), data, batch_size, autocast, classes))


@checked
def mean_loss(
    model: nn.Module,
    loss_fn: Loss,
    data: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """Mean of the per-sample losses, in nats for cross-entropy; see :func:`predict` for the arguments.

    Example:
        >>> x, y = torch.randn(6, 4), torch.arange(6) % 3
        >>> model = nn.Linear(4, 3)
        >>> loss = mean_loss(model, nn.functional.cross_entropy, (x, y), batch_size=4)
        >>> abs(loss - nn.functional.cross_entropy(model(x), y).item()) < 1e-6
        True
    """
    loss = SampleLoss(loss_fn)

    def total(output: Any, y: Any) -> Tensor:
        return loss.total(output, y).double()

    return float(sum(each_batch((model,), data, batch_size, autocast, total))) / size(data)


@checked
def accuracy(
    model: nn.Module,
    data: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> float:
    """Share of the labels that are predicted correctly, in [0, 1]; arguments as for :func:`predict`.

    Args:
        ignore_index: the label of samples or positions that have none; they do not count.

    Raises:
        ValueError: no label counts, a label is out of range, or labels are the values of a regression.

    Example:
        >>> model, x = nn.Linear(4, 3), torch.randn(20, 4)
        >>> accuracy(model, (x, model(x).argmax(1)), batch_size=8)
        1.0
    """
    predicted, labels = _predictions(model, data, batch_size, autocast, ignore_index)
    return (predicted == labels).double().mean().item()


@checked
def confusion_matrix(
    model: nn.Module,
    data: Data,
    *,
    classes: int | None = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Counts int64 (classes, classes): row = label, column = prediction; arguments as for :func:`predict`.

    Args:
        classes: number of classes; None for the largest label or prediction plus one.
        ignore_index: as for :func:`accuracy`.

    Example:
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> matrix = confusion_matrix(nn.Linear(4, 3), (x, y))
        >>> matrix.shape, matrix.sum(1)
        (torch.Size([3, 3]), tensor([7, 7, 6]))
    """
    predicted, labels = (t.cpu() for t in _predictions(model, data, batch_size, autocast, ignore_index))
    check_at_least_one(classes=classes)
    highest = int(torch.stack([predicted.max(), labels.max()]).max())
    k = classes or highest + 1
    if highest >= k:
        raise ValueError(f"classes is {k}, expected more than the largest label or prediction, {highest}")
    return torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)


@dataclass(frozen=True)
class ClassReport:
    """Precision, recall and F1 of every class, each (classes,); 0 where undefined. ``support`` counts labels.

    Example:
        >>> report = ClassReport.from_confusion(torch.tensor([[8, 2], [1, 9]]))
        >>> report.recall, report.support
        (tensor([0.8000, 0.9000]...), tensor([10, 10]))
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor

    @classmethod
    def from_confusion(cls, matrix: Tensor) -> ClassReport:
        """The report of a confusion matrix, whose rows are labels and whose columns are predictions."""
        hits, labelled, predicted = matrix.diagonal().double(), matrix.sum(1), matrix.sum(0)
        precision = hits / predicted.clamp(min=1)
        recall = hits / labelled.clamp(min=1)
        f1 = 2 * hits / (labelled + predicted).clamp(min=1)
        return cls(precision, recall, f1, labelled)


@checked
def per_class_report(
    model: nn.Module,
    data: Data,
    *,
    classes: int | None = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> ClassReport:
    """Precision, recall and F1 of every class; arguments as for :func:`confusion_matrix`.

    Example:
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> report = per_class_report(nn.Linear(4, 3), (x, y))
        >>> report.recall.shape, report.support
        (torch.Size([3]), tensor([7, 7, 6]))
    """
    return ClassReport.from_confusion(
        confusion_matrix(
            model, data, classes=classes, batch_size=batch_size, autocast=autocast, ignore_index=ignore_index
        )
    )


@checked
def interclass_confusion(
    model: nn.Module,
    data: Data,
    classes: tuple[int, int],
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """Share of the samples of two classes that are predicted to be of the other of the two, in [0, 1].

    In the interclass confusion test, the labels of two classes are swapped in a part of the training data, and this
    part is then forgotten: the confusion on held-out samples should fall to that of a retrained model.

    Args:
        model: maps x to class scores (N, classes).
        data: pairs (x, y); samples of other classes are not counted.
        classes: the two classes, as label numbers.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ValueError: `classes` is not two different classes, or the data has no samples of them.

    Source: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", 2022.

    Example:
        >>> model, x = nn.Linear(4, 3), torch.randn(50, 4)
        >>> y = torch.tensor([1, 0, 2])[model(x).argmax(1)]  # 0 and 1 are swapped
        >>> interclass_confusion(model, (x, y), (0, 1))
        1.0
    """
    if not isinstance(classes, (tuple, list)) or len(classes) != 2 or classes[0] == classes[1]:
        raise ValueError(f"classes is {classes!r}, expected two different classes")
    a, b = classes
    check_integer(**{"classes[0]": a, "classes[1]": b})

    predicted, labels = _predictions(model, data, batch_size, autocast, known=classes)
    both = (labels == a) | (labels == b)
    if not both.any():
        raise ValueError(f"data: has no samples of class {a} or {b}, expected some")
    confused = ((labels == a) & (predicted == b)) | ((labels == b) & (predicted == a))
    return (confused.sum() / both.sum()).item()
