"""The protocols by which the field's tables were made, as presets of the studies on CIFAR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from unlearnx.experiments.runs import default_device
from unlearnx.models import ImageTraining, fast_dtype, resnet9, resnet18


@dataclass(frozen=True)
class Protocol:
    """What a preset says of a study.

    Attributes:
        network: builds one of so many ``classes``.
        epochs, lr, pad: of :class:`unlearnx.models.ImageTraining`.
        passes: of methods over what stays.
        images: training images, the first ones; None for all.
        settings: further ones, by their names in :class:`unlearnx.experiments.forget.ForgetStudy`.
    """

    network: Callable[..., nn.Module]
    epochs: int
    lr: float
    pad: int
    passes: int
    images: int | None
    settings: dict[str, Any]

    @property
    def training(self) -> ImageTraining:
        """How networks are trained."""
        return ImageTraining(self.epochs, lr=self.lr, pad=self.pad, autocast=fast_dtype(default_device()))


PROTOCOLS = {
    "quick": Protocol(resnet9, 14, 0.2, 2, 1, None, {"slow_measures": False, "budget": 0.1}),
    "salun": Protocol(resnet18, 182, 0.1, 4, 10, 45_000, {}),
    "ssd": Protocol(resnet18, 182, 0.1, 4, 10, None, {"attack": "ssd"}),
    "neurips23": Protocol(resnet18, 30, 0.1, 4, 1, None, {"slow_measures": False, "forget_seed": 0}),
}
"""By name. "quick": ResNet-9s that may be read from files, within a tenth of retraining. "salun": SalUn's table. "ssd":
SSD's attack. "neurips23": one forget set for all runs, each of which is one of the competition's models."""
