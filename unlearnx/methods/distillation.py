"""Teacher models whose outputs on given samples a student imitates or avoids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._batches import Nest, call, count, moved, rows, scores, take
from unlearnx._checks import model_device
from unlearnx._copies import independent
from unlearnx._data import batches
from unlearnx._labels import class_axis, following, is_binary, is_causal
from unlearnx._losses import SampleLoss, torch_loss
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import evaluating
from unlearnx._per_sample import per_sample
from unlearnx.methods.base import Method, Work
from unlearnx.methods.untrained import Factory, initialise_anew


class Teacher:
    """The outputs of a model on fixed samples, computed once.

    :meth:`divergence` compares a student's outputs with them: of class scores, by the Kullback-Leibler divergence at
    each position; of single logits, or several with labels of 0 and 1, by that of the Bernoulli distributions; of the
    values of a regression, by the squared error. A sample has the mean over its positions whose labels count, or 0
    where none does. Training passes the samples' indices to it in the place of labels.
    """

    def __init__(self, model: nn.Module, x: Nest, y: Nest, method: Method, temperature: float = 1.0):
        device, dtype = model_device(model), method.autocast
        self.temperature = temperature
        outputs: list[Tensor] = []
        if not isinstance(y, Tensor):
            raise ValueError(
                f"request: has labels of type {type(y).__name__}, expected a tensor to compare teachers on"
            )
        ignore_index = SampleLoss(method.loss_fn).ignore_index
        with evaluating(model) as model, torch.autocast(device.type, dtype, enabled=dtype is not None):
            order = ImageOrder(model)
            for part, _ in batches((x, y), method.batch_size, device):
                output = rows(call(model, order(part)), count(part))
                outputs.append(scores(output))
        values = torch.cat(outputs)
        values = values.float() if dtype else values
        self._read(output, values, y.to(device), method, ignore_index)
        labels = following(y, ignore_index) if is_causal(x, y, ignore_index) else y
        shape = self._positions(self.target).shape
        fit = self.kind != "values" and labels.numel() == shape.numel()
        self.counts = (labels != ignore_index).reshape(shape).to(device) if fit else None

    def _read(self, output: Any, values: Tensor, y: Tensor, method: Method, ignore_index: int) -> None:
        """What the outputs mean."""
        example = values if isinstance(output, Tensor) else _Logits(values)
        self.axis = class_axis(example, y)
        known = torch_loss(method.loss_fn)
        one_hot = self.axis is not None and y.is_floating_point()
        if one_hot and not (known is not None and known[0] is F.cross_entropy):
            self.axis = None
        if self.axis is not None:
            self.kind, self.target = "classes", F.log_softmax(values / self.temperature, self.axis)
        elif is_binary(values, y, ignore_index):
            self.kind, self.target = "answers", values / self.temperature
        elif y.is_floating_point() and y.numel() == values.numel():
            self.kind, self.target = "values", values
        else:
            raise ValueError(
                f"request: has labels {y.dtype} of shape {list(y.shape)} with scores of shape {list(values.shape)}, "
                "expected classes, 0 or 1 for each logit, or as many values: it is not clear how to compare outputs"
            )

    def _positions(self, values: Tensor) -> Tensor:
        return values.select(self.axis, 0) if self.axis is not None else values

    @per_sample
    def divergence(self, output: Any, index: Tensor) -> Tensor:
        """``T^2 KL(teacher || student)`` of every sample at temperature T, in nats, (n,); squared errors of values.

        Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
        """
        target, values = self.target[index], rows(scores(output), len(index))
        if self.kind == "values":
            return (values - target).square().reshape(len(index), -1).mean(1)
        if self.axis is not None:
            log_q = F.log_softmax(values / self.temperature, self.axis)
            pointwise = F.kl_div(log_q, target, reduction="none", log_target=True).sum(self.axis)
        else:
            logits, p = values / self.temperature, target.sigmoid()
            pointwise = p * (F.logsigmoid(target) - F.logsigmoid(logits))
            pointwise = pointwise + (1 - p) * (F.logsigmoid(-target) - F.logsigmoid(-logits))
        positions = pointwise.reshape(len(index), -1)
        if self.counts is None:
            return self.temperature**2 * positions.mean(1)
        counts = self.counts[index].reshape(len(index), -1)
        return self.temperature**2 * positions.where(counts, 0).sum(1) / counts.sum(1).clamp(min=1)


@dataclass
class _Logits:
    logits: Tensor


def random_network(model: nn.Module, seed: int, factory: Factory | None = None) -> nn.Module:
    """A copy of `model` with new random parameters, in eval mode.

    Any that knows nothing will do as a teacher, so parameters that no module initialises are drawn roughly; see
    :func:`initialise_anew`.
    """
    network = independent(model).cpu().eval()  # on the CPU, so that the random numbers do not depend on the device
    initialise_anew(network, factory, seed, roughly=True)
    return network.to(model_device(model))


def labels_and_teacher(
    work: Work, labels: Nest, teacher: Teacher, *, label_weight: float, teacher_weight: float
) -> Callable[[Any, Tensor], Tensor]:
    """A loss of outputs and sample indices: ``label_weight * loss + teacher_weight * KL`` of each sample."""
    loss = SampleLoss(work.method.loss_fn)
    labels = moved(labels, model_device(work.model))

    @per_sample
    def combined(output: Any, index: Tensor) -> Tensor:
        labelled = loss.each(output, take(labels, index))
        return label_weight * labelled + teacher_weight * teacher.divergence(output, index)

    return combined
