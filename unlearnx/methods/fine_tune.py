"""Further training on the corrected data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnx._data import size
from unlearnx._modes import modes_kept
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.models.training import Training


@dataclass
class FineTune(Method):
    """Train on with the corrected data, or with the points that stay: the baseline to beat.

    Args:
        epochs: passes over the data.
        lr: peak learning rate of AdamW's one-cycle schedule.
        anchor: weight of ``anchor / 2 * ||theta - theta_0||^2``, which keeps the parameters near their old values.
        weight_decay: of AdamW.

    Modules whose parameters are all trained run in train mode meanwhile: dropout is active, BatchNorm statistics follow
    the data. A frozen prefix runs in eval mode.
    """

    _needs_eval: ClassVar[bool] = False

    epochs: int = 1
    lr: float = 1e-3
    anchor: float = 0.0
    weight_decay: float = 1e-4

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        training = Training(
            self.epochs,
            self.lr,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            anchor=self.anchor,
            loss_fn=self.loss_fn,
            params=work.names,
            autocast=self.autocast,
            seed=self.seed,
            progress=self.progress,
        )
        with modes_kept(work.model):
            chosen = set(work.names)
            for name, module in work.model.named_modules():
                own = {f"{name}.{p}" if name else p for p, _ in module.named_parameters()}
                module.training = own <= chosen  # also where there are none: dropout
            try:
                info["training_seconds"] = training.run(work.model, work.target)
            except FloatingPointError as error:
                raise NotApplied(str(error)) from error
        work.gradient_evaluations += self.epochs * size(work.target)
