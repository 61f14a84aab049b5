"""Training anew without the points to forget: the standard that every other method is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from unlearnx.methods.base import Work
from unlearnx.methods.training_method import TrainedMethod


def reset_parameters(model: nn.Module) -> None:
    """Give every module fresh parameters and statistics, by its own ``reset_parameters()``.

    Raises:
        ValueError: a module has parameters and no such method.
    """
    for name, module in reversed(list(model.named_modules())):  # what a parent does to its children comes last
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
    """Train a fresh copy of the model on the corrected data, or on the points that stay.

    Args:
        epochs: passes over the data.
        lr: peak learning rate of AdamW's one-cycle schedule.
        weight_decay: of AdamW.
        factory: builds an untrained model; None resets the modules of a copy of the given one.

    Raises:
        FloatingPointError: the training loss is not finite.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = Retrain(epochs=3)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.gradient_evaluations  # 3 epochs of the 54 others
        162
    """

    epochs: int = 30
    lr: float = 2e-3
    factory: Callable[[], nn.Module] | None = None
    batch_size: int = field(default=128, kw_only=True)

    def _names(self, model: nn.Module) -> list[str]:
        if self.params is not None:
            raise ValueError(f"params is {self.params!r}, but Retrain trains the whole model")
        return [name for name, _ in model.named_parameters()]

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            if self.factory is not None:
                work.model.load_state_dict(self.factory().state_dict())
            else:
                reset_parameters(work.model)
        self._train(work, info, self.epochs, self.lr)

    def _judge(self, work: Work) -> float:
        """Retraining is the standard: it stands whatever its loss."""
        return work.corrected_loss()
