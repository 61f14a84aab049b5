"""SalUn: training on a relabelled forget set, restricted to the weights that the forget set depends on most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnx._checks import check_fraction
from unlearnx._modes import evaluating
from unlearnx.curvature.gradients import grad_difference
from unlearnx.methods.base import Work
from unlearnx.methods.random_labels import RandomLabels
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import gradients_changed


@dataclass
class SalUn(RandomLabels):
    """:class:`RandomLabels` with changes to the salient weights only.

    A weight is salient if its gradient of the forget set's loss is among the largest in magnitude.

    Args:
        epochs: passes over all samples.
        lr: peak learning rate.
        ratio: fraction of the chosen parameters that are salient.

    Raises:
        ValueError: ``ratio`` is not in [0, 1], ``weight_decay`` is not 0, or the labels are not class indices.

    Source: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = SalUn(epochs=1, ratio=0.3)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> round(outcome.info["salient_share"] * 27)  # of 27 parameters
        8
    """

    _reads_samples: ClassVar[bool] = True

    ratio: float = 0.5
    weight_decay: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(ratio=self.ratio)
        if self.weight_decay:
            raise ValueError(
                f"weight_decay is {self.weight_decay}, expected 0: it would change weights that are not salient"
            )

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        relabelled = super()._trainer(work, info)
        masks = self._salient(work)
        info["salient_share"] = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())

        def train(epochs: int, rate: float) -> None:
            with gradients_changed(work.model, {name: mask.mul for name, mask in masks.items()}):
                relabelled(epochs, rate)

        return train

    def _salient(self, work: Work) -> dict[str, Tensor]:
        """For each parameter, a mask that is True where the weight is salient."""
        forget = work.request.forget_set
        work.gradient_evaluations += len(work.request.forget)
        with evaluating(work.model) as model, torch.enable_grad():
            gradient = grad_difference(model, self.loss_fn, forget, params=work.names, batch_size=work.pace.batch_size)
        magnitudes = torch.cat([gradient[name].abs().flatten() for name in work.names])
        is_salient = torch.zeros_like(magnitudes, dtype=torch.bool)
        is_salient[magnitudes.topk(round(self.ratio * len(magnitudes))).indices] = True
        parts = is_salient.split([gradient[name].numel() for name in work.names])
        return {name: part.view_as(gradient[name]) for name, part in zip(work.names, parts, strict=True)}
