"""Teacher models whose outputs on given samples a student imitates or avoids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unlearnx._batches import Nest, call, changed, count, moved, rows, scores
from unlearnx._checks import model_device
from unlearnx._copies import independent, lent
from unlearnx._data import KEPT_BYTES
from unlearnx._labels import class_axis, following, is_binary, is_causal
from unlearnx._losses import Loss, SampleLoss
from unlearnx._memory_order import ImageOrder
from unlearnx._pairs import Pair
from unlearnx._per_sample import per_sample
from unlearnx._sources import Changed, Samples
from unlearnx.methods.base import Method
from unlearnx.methods.untrained import Factory, initialise_anew

Lesson = tuple[Tensor, Tensor, Tensor | None]  # labels, the teacher's outputs, and which positions count


class Teacher:
    """The outputs of a model, as it is now, on samples that a student is trained on.

    They are computed when the samples are read, so that teacher and student see the same where these are augmented.
    :meth:`divergence` compares a student's outputs with them: of class scores, by the Kullback-Leibler divergence at
    each position; of single logits, or several with labels of 0 and 1, by that of the Bernoulli distributions; of the
    values of a regression, by the squared error. A sample has the mean over its positions whose labels count, or 0
    where none does.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss, autocast: torch.dtype | None = None, temperature: float = 1.0):
        self._model = lent(independent(model)).eval()
        self._order = ImageOrder(self._model)
        self._autocast, self._loss_fn, self.temperature = autocast, loss_fn, temperature
        self._ignore_index = SampleLoss(loss_fn).ignore_index
        self.kind = ""
        self.axis: int | None = None

    def taught(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """The samples with lessons in the place of their labels."""
        return lessons(dataset, lambda x, y, _: self.targets(x, y), self.counts)

    def targets(self, x: Nest, y: Nest) -> Tensor:
        """The outputs for samples, as :meth:`divergence` takes them.

        Raises:
            ValueError: it is not clear how to compare outputs for these labels.
        """
        device, dtype = model_device(self._model), self._autocast
        if not isinstance(y, Tensor):
            raise ValueError(
                f"request: has labels of type {type(y).__name__}, expected a tensor to compare teachers on"
            )
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            output = rows(call(self._model, self._order(moved(x, device))), count(x))
        values = scores(output).float() if dtype else scores(output)
        if not self.kind or (self.kind == "answers" and not is_binary(values, y.to(device), self._ignore_index)):
            self._read(output, values, y.to(device))
        if self.kind == "classes":
            return F.log_softmax(values / self.temperature, self.axis)
        return values / self.temperature if self.kind == "answers" else values

    def _read(self, output: Any, values: Tensor, y: Tensor) -> None:
        """Find what the outputs mean."""
        self.axis = axis_of_classes(output, y, self._loss_fn)
        before = self.kind
        if self.axis is not None:
            self.kind = "classes"
        elif is_binary(values, y, self._ignore_index):
            self.kind = "answers"
        elif y.is_floating_point() and y.numel() == values.numel() and not before:
            self.kind = "values"
        else:
            raise ValueError(
                f"request: has labels {y.dtype} of shape {list(y.shape)} with scores of shape {list(values.shape)}, "
                "expected classes, 0 or 1 for each logit, or as many values: it is not clear how to compare outputs"
            )

    def counts(self, x: Nest, y: Tensor, target: Tensor) -> Tensor | None:
        """Which positions of the samples count, (n, ...); None where all do."""
        labels = following(y, self._ignore_index) if is_causal(x, y, self._ignore_index) else y
        shape = (target.select(self.axis, 0) if self.axis is not None else target).shape
        if self.kind == "values" or labels.numel() != shape.numel():
            return None
        return (labels != self._ignore_index).reshape(shape)

    @per_sample
    def divergence(self, output: Any, lesson: Lesson) -> Tensor:
        """``T^2 KL(teacher || student)`` of every sample at temperature T, in nats, (n,); squared errors of values.

        Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
        """
        _, target, counts = lesson
        n = len(target)
        values = rows(scores(output), n)
        if self.kind == "values":
            return (values - target).square().reshape(n, -1).mean(1)
        if self.axis is not None:
            log_q = F.log_softmax(values / self.temperature, self.axis)
            pointwise = F.kl_div(log_q, target, reduction="none", log_target=True).sum(self.axis)
        else:
            logits, p = values / self.temperature, target.sigmoid()
            pointwise = p * (F.logsigmoid(target) - F.logsigmoid(logits))
            pointwise = pointwise + (1 - p) * (F.logsigmoid(-target) - F.logsigmoid(-logits))
        positions = pointwise.reshape(n, -1)
        if counts is None:
            return self.temperature**2 * positions.mean(1)
        counts = counts.reshape(n, -1)
        return self.temperature**2 * positions.where(counts, 0).sum(1) / counts.sum(1).clamp(min=1)


def axis_of_classes(output: Any, y: Tensor, loss_fn: Loss) -> int | None:
    """The dimension of the classes in the scores of an output, as :func:`class_axis` finds it; None where y are none.

    Numbers of the scores' shape are probabilities of the classes where the loss takes a softmax, which adding the same
    to all scores does not change, and answers or values for other losses.
    """
    axis = class_axis(output, y)
    if axis is None or not y.is_floating_point():
        return axis
    values, loss = scores(output), SampleLoss(loss_fn)
    raised = changed(output, lambda t: t + 1 if t is values else t)
    with torch.no_grad():
        losses, others = loss.each(output, y), loss.each(raised, y)
    return axis if torch.allclose(losses, others, rtol=1e-3, atol=1e-5) else None


def lessons(
    dataset: Dataset[Any], targets: Callable[..., Tensor], counts: Callable[..., Tensor | None]
) -> Dataset[Any]:
    """The samples of a dataset with lessons in the place of their labels.

    Args:
        targets: returns the outputs to imitate, of x, y and the indices of the samples. Of samples in memory, which are
            the same in each epoch, they are kept where they fit.
        counts: returns which positions count, of x, y and these outputs; None where all do.
    """
    known = _Known(len(dataset)) if Samples(dataset).in_memory else None  # type: ignore[arg-type]

    def lesson(x: Nest, y: Nest, index: Tensor) -> Pair:
        target = None if known is None else known.read(index)
        if target is None:
            target = targets(x, y, index)
            if known is not None:
                known.write(index, target)
        return x, (y, target, counts(x, y, target))

    return Changed(dataset, lesson)


class _Known:
    """Rows of samples that were computed once."""

    def __init__(self, n: int):
        self._known = torch.zeros(n, dtype=torch.bool)
        self._rows: Tensor | None = None

    def read(self, index: Tensor) -> Tensor | None:
        """The rows at these indices; None where one of them is missing."""
        return self._rows[index.to(self._rows.device)] if self._rows is not None and self._known[index].all() else None

    def write(self, index: Tensor, rows: Tensor) -> None:
        """Keep rows, if those of all samples would fit into KEPT_BYTES."""
        n = len(self._known)
        if rows[:1].nbytes * n > KEPT_BYTES:
            return
        if self._rows is None:
            self._rows = rows.new_empty((n, *rows.shape[1:]))
        self._rows[index.to(rows.device)], self._known[index] = rows, True


def random_network(model: nn.Module, seed: int, factory: Factory | None = None) -> nn.Module:
    """A copy of `model` with new random parameters, in eval mode.

    Any that knows nothing will do as a teacher, so parameters that no module initialises are drawn roughly; see
    :func:`initialise_anew`.
    """
    network = independent(model).cpu().eval()  # on the CPU, so that the random numbers do not depend on the device
    initialise_anew(network, factory, seed, roughly=True)
    return network.to(model_device(model))


def labels_and_teacher(
    method: Method, teacher: Teacher, *, label_weight: float, teacher_weight: float
) -> Callable[[Any, Lesson], Tensor]:
    """A loss of outputs and lessons: ``label_weight * loss + teacher_weight * KL`` of each sample."""
    loss = SampleLoss(method.loss_fn)

    @per_sample
    def combined(output: Any, lesson: Lesson) -> Tensor:
        return label_weight * loss.each(output, lesson[0]) + teacher_weight * teacher.divergence(output, lesson)

    return combined
