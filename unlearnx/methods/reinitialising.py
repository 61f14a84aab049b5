"""Methods that damage the model on purpose, and then train it on what stays: MSG and CT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnx._checks import check_fraction, qualified
from unlearnx._data import drawn, size
from unlearnx._modes import evaluating
from unlearnx.curvature.gradients import grad_difference
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import random_network
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod
from unlearnx.methods.untrained import Factory

MOST_READ = 4096  # samples of what stays, for its mean gradient


class _Damaging(TrainedMethod):
    """Damages the model once, and then trains on what stays."""

    _steps: ClassVar[int] = 64  # more than elsewhere before a round is judged: it has to heal first

    def _damage(self, work: Work, info: dict[str, Any]) -> dict[str, Tensor]:
        """The parameters that change, as they are to be, by name."""
        raise NotImplementedError

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        damaged = self._damage(work, info)
        own = dict(work.model.named_parameters())
        before = {name: own[name].detach().clone() for name in damaged}
        heal = self._training(work, info)

        def train(epochs: int, rate: float) -> None:
            with torch.no_grad():  # also after a round that was undone
                if all(torch.equal(own[name], t) for name, t in before.items()):
                    for name, t in damaged.items():
                        own[name].copy_(t)
            heal(epochs, rate)

        return train


@dataclass
class MSG(_Damaging):
    """Reset the weights whose gradient is smallest where what stays pulls one way and the forget set the other.

    The gradient is that of the mean loss on the corrected data, or the retain set, less that on the forget set; of each
    weight of two dimensions or more, the share with the smallest magnitude gets new random values. Then the model is
    trained on what stays. (The source also slows the weights that are not reset, by scaling their gradients, which
    the steps of AdamW do not depend on.)

    Args:
        epochs: passes over what stays.
        lr: peak learning rate.
        ratio: share of each weight that is reset.
        factory: returns an untrained model, whose values are taken; None as for
            :class:`unlearnx.methods.Retrain`.

    Raises:
        ValueError: ``ratio`` is not in [0, 1], or no weight of two dimensions or more is chosen.

    Source: Cadet et al., "Deep Unlearn: Benchmarking Machine Unlearning for Image Classification", 2024 ("Masked Small
    Gradients", after an entry of the NeurIPS 2023 unlearning competition).

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = MSG(epochs=1, max_increase=9.0)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.info["reset"], outcome.gradient_evaluations  # 7 of 24 weights; the gradient, then a pass over 54
        (7, 114)
    """

    epochs: int | str = "auto"
    lr: float = 1e-3
    ratio: float = 0.3
    factory: Factory | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(ratio=self.ratio)

    def _damage(self, work: Work, info: dict[str, Any]) -> dict[str, Tensor]:
        own = dict(work.model.named_parameters())
        names = [name for name in work.names if own[name].dim() > 1]
        if not names:
            raise ValueError("params: no weight of two dimensions or more is chosen, expected some to reset")
        generator = torch.Generator().manual_seed(self.seed)
        stays, goes = drawn(work.target, MOST_READ, generator), work.request.forget_set
        with evaluating(work.model) as model, torch.enable_grad():
            gradients = [
                grad_difference(model, self.loss_fn, data, params=names, batch_size=work.pace.batch_size)
                for data in (stays, goes)
            ]
        work.gradient_evaluations += size(stays) + size(goes)
        fresh = dict(random_network(work.model, self.seed, self.factory).named_parameters())
        damaged, info["reset"] = {}, 0
        for name in names:
            pull = gradients[0][name] / size(stays) - gradients[1][name] / size(goes)
            least = pull.abs().flatten().argsort()[: round(self.ratio * pull.numel())]
            values = own[name].detach().clone().flatten()
            values[least] = fresh[name].detach().flatten()[least].to(values)
            damaged[name], info["reset"] = values.view_as(own[name]), info["reset"] + len(least)
        return damaged


@dataclass
class CT(_Damaging):
    """Transpose the kernels of all convolutions, then train on what stays.

    Args:
        epochs: passes over what stays.
        lr: peak learning rate.

    Raises:
        ValueError: no convolution with a square kernel larger than 1x1 is chosen.

    Source: Cadet et al., "Deep Unlearn: Benchmarking Machine Unlearning for Image Classification", 2024 ("Convolution
    Transpose", after an entry of the NeurIPS 2023 unlearning competition).

    Example:
        >>> x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))
        >>> outcome = CT(epochs=1, lr=0.0, max_increase=9.0)(model, Request.remove((x, y), range(6)))
        >>> torch.equal(outcome.model[0].weight, model[0].weight.mT)
        True
    """

    _needs_whole: ClassVar[bool] = True  # the last layer, tried alone elsewhere, is no convolution

    epochs: int | str = "auto"
    lr: float = 1e-3

    def _damage(self, work: Work, info: dict[str, Any]) -> dict[str, Tensor]:
        chosen = set(work.names)
        kernels = {}
        for name, module in work.model.named_modules():
            weight = qualified(name, "weight")
            if isinstance(module, nn.Conv2d) and weight in chosen:
                height, width = module.weight.shape[2:]
                if height == width > 1:
                    kernels[weight] = module.weight.detach().mT.clone()
        if not kernels:
            raise ValueError(
                "model: has no convolution with a square kernel larger than 1x1 among the chosen parameters, expected "
                "some to transpose"
            )
        return kernels
