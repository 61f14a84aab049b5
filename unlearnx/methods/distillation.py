"""Teacher models whose outputs on given samples a student imitates or avoids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._checks import model_device
from unlearnx._copies import independent
from unlearnx._data import batches
from unlearnx._losses import SampleLoss
from unlearnx._memory_order import ImageOrder
from unlearnx._modes import evaluating
from unlearnx.methods.base import Method, Work
from unlearnx.methods.untrained import Factory, initialise_anew


class Teacher:
    """Log-probabilities of a model on fixed samples, computed once.

    :meth:`divergence` compares a student's outputs (n, classes, ...) with them. Training passes the samples' indices to
    it in the place of labels.
    """

    def __init__(self, model: nn.Module, x: Tensor, method: Method, temperature: float = 1.0):
        device = model_device(model)
        dtype = method.autocast
        self.temperature = temperature
        with evaluating(model) as model, torch.autocast(device.type, dtype, enabled=dtype is not None):
            order = ImageOrder(model)
            output = torch.cat([model(order(part)) for part, _ in batches((x, x), method.batch_size, device)])
        self.log_p = F.log_softmax((output.float() if dtype else output) / temperature, 1)

    def divergence(self, output: Tensor, index: Tensor) -> Tensor:
        """``T^2 KL(teacher || student)`` of every sample at temperature T, in nats, (n,).

        Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
        """
        log_q = F.log_softmax(output / self.temperature, 1)
        pointwise = F.kl_div(log_q, self.log_p[index], reduction="none", log_target=True).sum(1)
        positions = pointwise.flatten(1) if pointwise.dim() > 1 else pointwise[:, None]
        return self.temperature**2 * positions.mean(1)


def random_network(model: nn.Module, seed: int, factory: Factory | None = None) -> nn.Module:
    """A copy of `model` with new random parameters, in eval mode; see :func:`initialise_anew`."""
    network = independent(model).cpu().eval()  # on the CPU, so that the random numbers do not depend on the device
    initialise_anew(network, factory, seed)
    return network.to(model_device(model))


def labels_and_teacher(
    work: Work, labels: Tensor, teacher: Teacher, *, label_weight: float, teacher_weight: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of outputs and sample indices: the mean of ``label_weight * loss + teacher_weight * KL`` over samples."""
    loss = SampleLoss(work.method.loss_fn)
    labels = labels.to(model_device(work.model))

    def combined(output: Tensor, index: Tensor) -> Tensor:
        labelled = loss.total(output, labels[index]) / len(output)
        return label_weight * labelled + teacher_weight * teacher.divergence(output, index).mean()

    return combined
