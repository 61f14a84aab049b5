"""Further training on the corrected data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearnx.methods.base import Work
from unlearnx.methods.trained import TrainedMethod


@dataclass
class FineTune(TrainedMethod):
    """Train on with the corrected data, or with the points that stay: the baseline to beat.

    Args:
        epochs: passes over the data.
        lr: peak learning rate of AdamW's one-cycle schedule.
        anchor: weight of ``anchor / 2 * ||theta - theta_0||^2``, which keeps the parameters near their old values.
        weight_decay: of AdamW.

    Modules whose parameters are all trained run in train mode meanwhile: dropout is active, BatchNorm statistics follow
    the data. A frozen prefix runs in eval mode.
    """

    epochs: int = 1
    lr: float = 1e-3
    anchor: float = 0.0

    def _fit(self, work: Work, info: dict[str, Any]) -> None:
        self._train(work, info, self.epochs, self.lr, anchor=self.anchor)
