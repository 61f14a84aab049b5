"""Training from scratch without the forget set: the reference for all other methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from unlearnx._checks import model_device
from unlearnx._random import forked_random
from unlearnx.methods.base import Work
from unlearnx.methods.training_method import TrainedMethod


def reset_parameters(model: nn.Module) -> None:
    """Initialise all parameters and statistics anew, by the modules' own ``reset_parameters()``.

    Raises:
        ValueError: a module has parameters and no such method.
    """
    for name, module in reversed(
        list(model.named_modules())
    ):  # children first: a parent may initialise its children in its own way
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"model: {type(module).__name__} {name!r} has parameters and no reset_parameters(); "
                "give Retrain a factory that builds an untrained model"
            )


@dataclass
class Retrain(TrainedMethod):
    """Train the model from scratch on the corrected data, or on the retain set.

    Args:
        epochs: passes over the data.
        lr: peak learning rate of AdamW's one-cycle schedule.
        weight_decay: weight decay of AdamW.
        factory: returns an untrained model; None initialises a copy of the given model anew.

    Raises:
        FloatingPointError: the training loss is not finite.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = Retrain(epochs=3)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.gradient_evaluations  # 3 epochs of the 54 other samples
        162
    """

    epochs: int = 30
    lr: float = 2e-3
    factory: Callable[[], nn.Module] | None = None
    batch_size: int = field(default=128, kw_only=True)

    def _names(self, model: nn.Module) -> list[str]:
        if self.params is not None:
            raise ValueError(f"params is {self.params!r}, expected None: Retrain trains the whole model")
        return [name for name, _ in model.named_parameters()]

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        with forked_random(model_device(work.model), seed=self.seed):
            if self.factory is not None:
                work.model.load_state_dict(self.factory().state_dict())
            else:
                reset_parameters(work.model)
        self._train(work, info, self.epochs, self.lr)

    def _final_loss(self, work: Work) -> float:
        """Retraining is the reference, so it is applied for any loss."""
        return work.corrected_loss()
