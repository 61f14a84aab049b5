"""Wrongly learned points moved to where a repaired model is sure of itself, and learned anew from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._checks import Params, check_at_least_one, check_at_least_zero, model_device
from unlearnx._data import batches, materialize
from unlearnx._losses import SampleLoss
from unlearnx._modes import evaluating
from unlearnx.methods.base import Work
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class EnergyAlignment(TrainedMethod):
    """Move the features of the points to forget down the free energy, relabel them there, and train the last layers.

    The free energy of features h is ``E(h) = -logsumexp(head(h))``: low where the model knows what it sees. The moved
    points, with the softmax of the model that was given as their labels, and the points that stay are then trained on
    together. A model that has learned wrong labels is sure of those: repair it first, as in
    ``Pipeline([NewtonRepair(), EnergyAlignment()])``.

    Args:
        epochs: passes over all points.
        lr: peak learning rate.
        steps: of gradient descent on the energy.
        step: length of each, as a share of the features' own mean length.
        params: the last layers, ``"last:2"`` for one with a bias; the features are what goes into them.

    Raises:
        ValueError: a number does not fit, or the model gives no class scores (N, classes).

    Source: the energy of Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = EnergyAlignment()(model, Request.remove((x, y), range(6)))
        >>> before, after = outcome.info["energy"]
        >>> after < before
        True
    """

    epochs: int = 2
    lr: float = 1e-3
    steps: int = 10
    step: float = 0.05
    params: Params = field(default="last:2", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(epochs=self.epochs, steps=self.steps)
        check_at_least_zero(lr=self.lr, step=self.step)

    def _fit(self, work: Work, info: dict[str, Any]) -> None:
        x, y = materialize(work.target)
        wrong = materialize(work.request.forget_set)[0].to(x.device)
        before, moved = [], []
        with evaluating(work.model) as model:
            for part, _ in batches((wrong, wrong), self.batch_size, model_device(work.model)):
                before.append(free_energy(model, part))
                moved.append(descend(model, part, self.steps, self.step))
            after = [free_energy(model, part) for part in moved]
            labels = torch.cat([model(part) for part in moved]).softmax(1)
        work.gradient_evaluations += self.steps * len(wrong)
        info["energy"] = [float(torch.cat(energies).mean()) for energies in (before, after)]
        stays, device = len(x), labels.device
        hard = y.to(device)
        loss = SampleLoss(self.loss_fn)

        def both(output: Tensor, number: Tensor) -> Tensor:
            known, aligned = number < stays, number >= stays
            total = output.new_zeros(())
            if known.any():
                total = total + loss.total(output[known], hard[number[known]])
            if aligned.any():
                soft = labels[number[aligned] - stays]
                total = total + F.cross_entropy(output[aligned], soft, reduction="sum")
            return total / len(output)

        data = (torch.cat([x, *(part.to(x.device) for part in moved)]), torch.arange(stays + len(wrong)))
        self._train(work, info, self.epochs, self.lr, data=data, loss_fn=both)


def free_energy(head: nn.Module, features: Tensor) -> Tensor:
    """``-logsumexp`` of the class scores of every sample, (N,).

    Raises:
        ValueError: the model gives something else than scores (N, classes).

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, eq. 4.
    """
    scores = head(features)
    if scores.dim() != 2:
        raise ValueError(f"model: gave an output of shape {list(scores.shape)}, expected scores (N, classes)")
    return -scores.logsumexp(1)


def descend(head: nn.Module, features: Tensor, steps: int, step: float) -> Tensor:
    """Features (N, ...) after so many steps down the free energy, each of ``step`` times the features' mean length."""
    length = step * features.flatten(1).norm(dim=1).mean()
    h = features
    for _ in range(steps):
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            (slope,) = torch.autograd.grad(free_energy(head, leaf).sum(), leaf)
        direction = F.normalize(slope.flatten(1), dim=1).view_as(slope)
        h = h - length * direction
    return h
