"""What the methods that train have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from unlearnx._checks import qualified
from unlearnx._data import Data, size
from unlearnx._losses import Loss
from unlearnx._modes import modes_kept
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.models.training import Training


@dataclass(kw_only=True)
class TrainedMethod(Method):
    """A method that trains; the model is given back in its old modes.

    Args:
        weight_decay: of AdamW.
    """

    _needs_eval: ClassVar[bool] = False

    weight_decay: float = 1e-4

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        try:
            self._fit(work, info)
        except FloatingPointError as error:
            raise NotApplied(str(error)) from error

    def _fit(self, work: Work, info: dict[str, Any]) -> None:
        """Train ``work.model``; a FloatingPointError means that nothing is applied."""
        raise NotImplementedError

    def _train(
        self,
        work: Work,
        info: dict[str, Any],
        epochs: int,
        lr: float,
        *,
        data: Data | None = None,
        loss_fn: Loss | None = None,
        anchor: float = 0.0,
        still: bool = False,
    ) -> None:
        """Train on `data`, or on the corrected data, by `loss_fn`, or by the method's own.

        A `still` model stays in eval mode. The statistics of BatchNorm would otherwise follow data that is to be
        forgotten.
        """
        data = work.target if data is None else data
        training = Training(
            epochs,
            lr,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            anchor=anchor,
            loss_fn=self.loss_fn if loss_fn is None else loss_fn,
            params=work.names,
            autocast=self.autocast,
            seed=self.seed + info.get("trainings", 0),
            progress=self.progress,
        )
        with _training(work.model, set() if still else set(work.names)):
            info["training_seconds"] = info.get("training_seconds", 0.0) + training.run(work.model, data)
        info["trainings"] = info.get("trainings", 0) + 1
        work.gradient_evaluations += epochs * size(data)


@contextmanager
def _training(model: nn.Module, chosen: set[str]) -> Iterator[None]:
    """Modules of which all parameters are chosen are in train mode; those without any, where something is chosen."""
    with modes_kept(model):
        for name, module in model.named_modules():
            own = {qualified(name, p) for p, _ in module.named_parameters()}
            module.training = bool(chosen) and own <= chosen  # without parameters: dropout
        yield
