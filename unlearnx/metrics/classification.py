"""Measures of a classifier on labelled data. The model is read in eval mode and left in the mode it was in.

Where each position of a sample has a label of its own, scores (N, classes, ...) and labels (N, ...), positions count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearnx._data import Data, size
from unlearnx._losses import Loss, SampleLoss
from unlearnx.metrics.outputs import each_batch


def _predictions(
    model: nn.Module, data: Data, batch_size: int | None, autocast: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Predicted classes and labels, in the order in which the data came."""
    pairs = each_batch((model,), data, batch_size, autocast, lambda output, y: torch.stack([output.argmax(1), y]))
    predicted, labels = torch.cat(pairs, 1)
    return predicted, labels


def predict(
    model: nn.Module, data: Data, *, batch_size: int | None = None, autocast: torch.dtype | None = None
) -> Tensor:
    """Predicted class of every sample, int64 (N,), or of its every position, (N, ...), on the model's device.

    Args:
        model: maps x to class scores (N, classes) or (N, classes, ...).
        data: pairs (x, y); the labels are not read.
        batch_size: samples a pass.
        autocast: dtype of the layers that gain from it; None computes in the model's own.
    """
    return torch.cat(each_batch((model,), data, batch_size, autocast, lambda output, y: output.argmax(1)))


def mean_loss(
    model: nn.Module,
    loss_fn: Loss,
    data: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """Mean of the per-sample losses, in nats for cross-entropy; see :func:`predict` for the arguments."""
    loss = SampleLoss(loss_fn)

    def total(output: Tensor, y: Tensor) -> Tensor:
        return loss.total(output.float() if autocast else output, y).double()

    return float(sum(each_batch((model,), data, batch_size, autocast, total))) / size(data)


def accuracy(
    model: nn.Module, data: Data, *, batch_size: int | None = None, autocast: torch.dtype | None = None
) -> float:
    """Share of labels that have the highest score, in [0, 1]; arguments as for :func:`predict`."""
    predicted, labels = _predictions(model, data, batch_size, autocast)
    return (predicted == labels).double().mean().item()


def confusion_matrix(
    model: nn.Module,
    data: Data,
    *,
    classes: int | None = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Counts int64 (classes, classes): row = label, column = prediction; arguments as for :func:`predict`.

    Args:
        classes: number of classes; None for the largest label or prediction plus one.
    """
    predicted, labels = (t.cpu().flatten() for t in _predictions(model, data, batch_size, autocast))
    k = classes or int(torch.stack([predicted.max(), labels.max()]).max()) + 1
    return torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)


@dataclass(frozen=True)
class ClassReport:
    """Precision, recall and F1 of every class, each (classes,); 0 where undefined. ``support`` counts labels."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor

    @classmethod
    def from_confusion(cls, matrix: Tensor) -> ClassReport:
        """The report that a confusion matrix (row = label) implies."""
        hits, labelled, predicted = matrix.diagonal().double(), matrix.sum(1), matrix.sum(0)
        precision = hits / predicted.clamp(min=1)
        recall = hits / labelled.clamp(min=1)
        f1 = 2 * hits / (labelled + predicted).clamp(min=1)
        return cls(precision, recall, f1, labelled)


def per_class_report(
    model: nn.Module,
    data: Data,
    *,
    classes: int | None = None,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> ClassReport:
    """Precision, recall and F1 of every class; arguments as for :func:`confusion_matrix`."""
    return ClassReport.from_confusion(
        confusion_matrix(model, data, classes=classes, batch_size=batch_size, autocast=autocast)
    )


def interclass_confusion(
    model: nn.Module,
    data: Data,
    classes: tuple[int, int],
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """Share of the samples of two classes that are taken for the other of the two, in [0, 1].

    In the interclass confusion test, labels of two classes are exchanged in a part of the training data, which is then
    to be forgotten: the confusion on held-out samples should fall to that of a retrained model.

    Args:
        model: as for :func:`predict`, like the other arguments.
        data: pairs (x, y); samples of other classes are not counted.
        classes: the two.
        batch_size: samples a pass.
        autocast: dtype of the layers that gain from it; None computes in the model's own.

    Raises:
        ValueError: the classes are not two different ones, or have no samples.

    Source: Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", 2022.
    """
    if len(classes) != 2 or classes[0] == classes[1]:
        raise ValueError(f"classes is {classes}, expected two different ones")
    a, b = classes
    predicted, labels = _predictions(model, data, batch_size, autocast)
    both = (labels == a) | (labels == b)
    if not both.any():
        raise ValueError(f"data: has no samples of the classes {a} and {b}")
    confused = ((labels == a) & (predicted == b)) | ((labels == b) & (predicted == a))
    return (confused.sum() / both.sum()).item()
