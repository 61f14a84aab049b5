"""Moving the features of the forget set to where the model is confident, and training on them there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset

from unlearnx._batches import Nest, joined, scores, take
from unlearnx._checks import Params, check_at_least_one, check_at_least_zero, model_device
from unlearnx._data import batches, dataset_of, size
from unlearnx._losses import SampleLoss
from unlearnx._modes import evaluating
from unlearnx._per_sample import per_sample
from unlearnx._rows import Rows
from unlearnx._sources import Changed
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import axis_of_classes
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class EnergyAlignment(TrainedMethod):
    """Move the features of the forget set to lower free energy, relabel them, and train the last layers.

    The free energy of features h is ``E(h) = -logsumexp(head(h))``; it is low where the model is confident. The last
    layers are trained on the moved features, labelled with the model's softmax outputs there, together with the retain
    set. A model that has learned wrong labels is confident about them: repair it first, as in
    ``Pipeline([NewtonRepair(), EnergyAlignment()])``.

    Args:
        epochs: passes over all samples.
        lr: peak learning rate.
        steps: steps of gradient descent on the energy.
        step: length of a step, relative to the mean norm of the features.
        params: parameters of the last layers, for example ``"last:2"`` for one layer with a bias; the features are the
            inputs of these layers.

    Raises:
        ValueError: a number is out of range, the model does not return class scores (N, classes), or the labels are not
            one class for each sample.

    Source: the energy of Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = EnergyAlignment()(model, Request.remove((x, y), range(6)))
        >>> before, after = outcome.info["energy"]
        >>> after < before
        True
    """

    _nominal_epochs: ClassVar[int] = 2

    epochs: int | str = "auto"
    lr: float = 1e-3
    steps: int = 10
    step: float = 0.05
    params: Params = field(default="last:2", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(steps=self.steps)
        check_at_least_zero(step=self.step)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        moved, soft_labels = self._moved(work, info)
        target = work.request.trained_target
        retained, loss = size(target), SampleLoss(self.loss_fn)

        @per_sample
        def loss_of_all(output: Any, y: tuple[Nest, Tensor]) -> Tensor:
            index = y[1]
            kept, changed = (index < retained).nonzero().flatten(), (index >= retained).nonzero().flatten()
            losses = scores(output).new_zeros(len(index))
            if len(kept):
                losses = losses.index_put((kept,), loss.each(take(output, kept), take(y[0], kept)))
            if len(changed):
                own = soft_labels[index[changed] - retained]
                soft = F.cross_entropy(scores(output)[changed], own.to(losses), reduction="none")
                losses = losses.index_put((changed,), soft)
            return losses

        both: Dataset[Any] = ConcatDataset([target, moved])
        data = Changed(both, lambda x, y, index: (x, (y, index)))
        return self._training(work, info, data=data, loss_fn=loss_of_all)

    def _moved(self, work: Work, info: dict[str, Any]) -> tuple[Dataset[Any], Tensor]:
        """The forget set with its features moved, and the model's softmax outputs there, (F, classes)."""
        before, after, soft_labels, given = [], [], [], []
        moved = Rows(len(work.request.forget))
        with evaluating(work.model) as model:
            for x, y in batches(work.request.forget_set, work.pace.batch_size, model_device(work.model)):
                if not isinstance(x, Tensor) or not x.is_floating_point():
                    raise ValueError(
                        "request: EnergyAlignment moves the inputs of the last layers, expected one floating point "
                        "tensor of them; none was found for this model and params"
                    )
                energy = free_energy(model, x)
                if not isinstance(y, Tensor) or axis_of_classes(model(x), y, self.loss_fn) is None:
                    raise ValueError(
                        "request: has labels that are not one class for each sample, expected classes: the energy of "
                        "EnergyAlignment is that of scores of which one is right"
                    )
                before.append(energy)
                part = descend(model, x, self.steps, self.step)
                after.append(free_energy(model, part))
                soft_labels.append(scores(model(part)).softmax(1))
                given.append(y)
                moved.add(part)
        work.gradient_evaluations += self.steps * len(work.request.forget)
        info["energy"] = [float(torch.cat(energies).mean()) for energies in (before, after)]
        return dataset_of(moved.joined(), joined(given)), torch.cat(soft_labels)


def free_energy(head: nn.Module, features: Tensor) -> Tensor:
    """``-logsumexp`` of the class scores of each sample, (N,).

    Raises:
        ValueError: the model does not return scores (N, classes).

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, eq. 4.
    """
    values = scores(head(features))
    if values.dim() != 2 or values.shape[1] < 2:
        raise ValueError(f"model: returned an output of shape {list(values.shape)}, expected class scores (N, classes)")
    return -values.logsumexp(1)


def descend(head: nn.Module, features: Tensor, steps: int, step: float) -> Tensor:
    """Features (N, ...) after steps down the free energy, each of ``step`` times the mean norm of the features."""
    length = step * features.flatten(1).norm(dim=1).mean()
    h = features
    for _ in range(steps):
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(free_energy(head, leaf).sum(), leaf)
        direction = F.normalize(gradient.flatten(1), dim=1).view_as(gradient)
        h = h - length * direction
    return h
