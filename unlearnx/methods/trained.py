"""What the methods that train have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnx._checks import qualified
from unlearnx._data import size
from unlearnx._modes import modes_kept
from unlearnx.methods.base import Method, Work
from unlearnx.models.training import Training


@dataclass(kw_only=True)
class TrainedMethod(Method):
    """A method that trains on the corrected data; the model is given back in its old modes.

    Args:
        weight_decay: of AdamW.
    """

    _needs_eval: ClassVar[bool] = False

    weight_decay: float = 1e-4

    def _train(self, work: Work, info: dict[str, Any], epochs: int, lr: float, anchor: float = 0.0) -> None:
        training = Training(
            epochs,
            lr,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            anchor=anchor,
            loss_fn=self.loss_fn,
            params=work.names,
            autocast=self.autocast,
            seed=self.seed,
            progress=self.progress,
        )
        with modes_kept(work.model):
            chosen = set(work.names)
            for name, module in work.model.named_modules():
                own = {qualified(name, p) for p, _ in module.named_parameters()}
                module.training = own <= chosen  # also where there are none: dropout
            info["training_seconds"] = training.run(work.model, work.target)
        work.gradient_evaluations += epochs * size(work.target)
