"""Further training on the corrected data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearnx.methods.base import Work
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class FineTune(TrainedMethod):
    """Continue training on the corrected data, or on the retain set: the baseline for other methods.

    Args:
        epochs: passes over the data.
        lr: peak learning rate of AdamW's one-cycle schedule.
        anchor: weight of ``anchor / 2 * ||theta - theta_0||^2``, which keeps the parameters near the initial ones.
        weight_decay: weight decay of AdamW.

    Modules whose parameters are all trained run in train mode: dropout is active, and BatchNorm statistics are updated.
    The part of the model before them runs in eval mode.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = FineTune(epochs=2, params="last:2")(model, Request.remove((x, y), range(6)))
        >>> torch.equal(outcome.model[0].weight, model[0].weight), torch.equal(outcome.model[2].weight, model[2].weight)
        (True, False)
    """

    epochs: int | str = "auto"
    lr: float = 1e-3
    anchor: float = 0.0

    def _trainer(self, work: Work, info: dict[str, Any], *, on_all: bool = False) -> Train:
        return self._training(work, info, anchor=self.anchor, on_all=on_all)

    def _trainer_on_all(self, work: Work, info: dict[str, Any]) -> Train:
        return self._trainer(work, info, on_all=True)  # a part would be learned by heart, and the rest lost
