"""SCRUB: a student that disobeys its teacher on the points to forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one, check_at_least_zero
from unlearnx._data import materialize
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import Teacher, labels_and_teacher
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class SCRUB(TrainedMethod):
    """Move away from the original model on the forget set and stay with it, and with the labels, on the rest, in turns.

    Args:
        epochs: passes over the corrected data, or the points that stay.
        max_epochs: of these, the first so many are each preceded by a pass away from the original on the forget set.
        lr: peak learning rate of a pass over the points that stay.
        max_lr: peak learning rate of a pass over the forget set.
        alpha: weight of the divergence from the original model.
        gamma: weight of the loss on the labels.

    Raises:
        ValueError: a number is out of range.

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, algorithm 1.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = SCRUB(epochs=2, max_epochs=1)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.gradient_evaluations  # one pass over 6 points and two over 54
        114
    """

    epochs: int = 4
    max_epochs: int = 3
    lr: float = 1e-3
    max_lr: float = 2e-3
    alpha: float = 0.5
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(epochs=self.epochs)
        check_at_least_zero(max_epochs=self.max_epochs, alpha=self.alpha, gamma=self.gamma)

    def _fit(self, work: Work, info: dict[str, Any]) -> None:
        (forgotten, _), (x, y) = materialize(work.request.forget_set), materialize(work.target)
        on_forgotten = Teacher(work.model, forgotten, self)
        stay = labels_and_teacher(
            work, y, Teacher(work.model, x, self), label_weight=self.gamma, teacher_weight=self.alpha
        )

        def leave(output: Tensor, number: Tensor) -> Tensor:
            return -on_forgotten.divergence(output, number)

        for epoch in range(self.epochs):
            if epoch < self.max_epochs:
                data = (forgotten, torch.arange(len(forgotten)))
                self._train(work, info, 1, self.max_lr, data=data, loss_fn=leave, still=True)
            self._train(work, info, 1, self.lr, data=(x, torch.arange(len(x))), loss_fn=stay)
