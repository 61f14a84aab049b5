"""Training from scratch without the forget set: the reference for all other methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from unlearnx.methods.base import Work
from unlearnx.methods.training_method import TrainedMethod
from unlearnx.methods.untrained import initialise_anew, trained_names


@dataclass
class Retrain(TrainedMethod):
    """Train the model from scratch on the corrected data, or on the retain set.

    Of a model with adapters of peft, these are trained from scratch: what they were put on stays as it is.

    Args:
        epochs: passes over the data.
        lr: peak learning rate of AdamW's one-cycle schedule.
        weight_decay: weight decay of AdamW.
        factory: returns an untrained model; None builds one from the model's ``config``, as of HuggingFace, or
            initialises a copy of it anew by its modules' ``reset_parameters()``.

    Raises:
        FloatingPointError: the training loss is not finite.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = Retrain(epochs=3)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.gradient_evaluations  # 3 epochs of the 54 other samples
        162
    """

    _strength: ClassVar[str | None] = None

    epochs: int = 30
    lr: float = 2e-3
    factory: Callable[[], nn.Module] | None = None
    batch_size: int = field(default=128, kw_only=True)

    def _names(self, model: nn.Module) -> list[str]:
        if self.params is not None:
            raise ValueError(f"params is {self.params!r}, expected None: Retrain trains the whole model")
        return trained_names(model)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        initialise_anew(work.model, self.factory, self.seed, names=work.names)
        self._train(work, info, self.epochs, self.lr)

    def _final_loss(self, work: Work) -> float:
        """Retraining is the reference, so it is applied for any loss."""
        return work.corrected_loss()
