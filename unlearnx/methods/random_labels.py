"""Training on the forget set with random labels in the place of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from unlearnx._batches import Nest, count, replaced, scores, take
from unlearnx._data import size
from unlearnx._labels import counted, is_binary
from unlearnx._losses import SampleLoss
from unlearnx._pairs import Pair
from unlearnx._sources import Changed
from unlearnx.methods.base import Work, first_output
from unlearnx.methods.distillation import axis_of_classes
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class RandomLabels(TrainedMethod):
    """Train on the retain set, and on the forget set with random labels other than its own.

    Labels that do not count stay as they are; answers of yes and no (0 and 1 for single logits, or for each of several)
    become the other one; probabilities of classes, where the loss takes a softmax, move on to other classes together;
    values of a regression are refused. In a correction, the corrected labels are used instead of random ones.

    Args:
        epochs: passes over all samples.
        lr: peak learning rate.

    Raises:
        ValueError: the labels are not class indices, nor answers of yes and no.

    Source: Golatkar, Achille and Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020 ("random labels"); Graves,
    Nagisetty and Ganesh, "Amnesiac Machine Learning", AAAI 2021.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = RandomLabels(epochs=1)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.applied, outcome.gradient_evaluations
        (True, 60)
    """

    _nominal_epochs: ClassVar[int] = 3

    epochs: int | str = "auto"
    lr: float = 5e-4

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        data = self._data(work)

        return self._training(work, info, data=data)

    def _data(self, work: Work) -> Dataset[Any]:
        """What is trained on."""
        data = work.request.trained_target
        if work.request.corrected is None:
            data = self._relabelled(work, data, work.request.trained_forget_set)
        return data

    def _relabelled(self, work: Work, retain: Dataset[Any], forget: Dataset[Any]) -> Dataset[Any]:
        """Both sets, the second with other labels, the same ones in each epoch."""
        example = first_output(work, forget)
        retained = size(retain)

        def change(x: Nest, y: Nest, index: Tensor) -> Pair:
            forgets = (index >= retained).nonzero().flatten()
            if not len(forgets):
                return x, y
            return x, replaced(y, forgets, self._other_labels(example, index[forgets], take(y, forgets)))

        self._other_labels(example, torch.arange(count(example[1])), example[1])  # refuses before any training
        return Changed(ConcatDataset([retain, forget]), change)

    def _other_labels(self, example: tuple[Any, Nest], index: Tensor, labels: Nest) -> Tensor:
        """For each label that counts, a random class other than its own, or the other answer of yes and no.

        Args:
            example: what the model returns for some samples, and their labels, which tell what labels mean.
            index: numbers of some samples, on which alone the random classes depend.
            labels: theirs.
        """
        if not isinstance(labels, Tensor):
            raise ValueError(f"request: has labels of type {type(labels).__name__}, expected class indices to relabel")
        output, first = example
        ignored = SampleLoss(self.loss_fn).ignore_index
        axis = axis_of_classes(output, first, self.loss_fn)
        if axis is None:
            one_each = scores(output)[:1].expand(len(labels), *scores(output).shape[1:])
            if not is_binary(one_each, labels, ignored):
                raise ValueError(f"request: has labels of dtype {labels.dtype}, expected class indices to relabel")
            return (1 - labels).where(labels != ignored, labels)
        classes = scores(output).shape[axis]
        if labels.is_floating_point():  # a probability for each class: those of the classes are moved on
            own = labels.movedim(axis, -1)
            shift = self._shifts(index, own.shape[:-1], classes).to(labels.device)
            order = (torch.arange(classes, device=labels.device) - shift[..., None]) % classes
            return own.gather(-1, order).movedim(-1, axis)
        has_label = counted(labels, classes, ignored)
        own = labels.where(has_label, 0)
        if 0 <= ignored < classes:  # a class that stands for none is not drawn
            own, classes = own - (own > ignored).long(), classes - 1
        if classes < 2:
            raise ValueError(f"request: has {classes} class to choose from, expected at least two to relabel")
        other = (own + self._shifts(index, labels.shape, classes).to(labels.device)) % classes
        if 0 <= ignored <= classes:
            other = other + (other >= ignored).long()
        return other.where(has_label, labels)

    def _shifts(self, index: Tensor, shape: torch.Size, classes: int) -> Tensor:
        """How many classes on the new label of each sample or position is, from 1 to ``classes - 1``."""
        shift = torch.empty(shape, dtype=torch.int64)
        for row, i in zip(shift, index.tolist(), strict=True):
            row.random_(1, classes, generator=torch.Generator().manual_seed(hash((self.seed, i)) % 2**63))
        return shift
