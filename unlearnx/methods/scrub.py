"""SCRUB: distillation towards the original model on the retain set and away from it on the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearnx._batches import count
from unlearnx._checks import check_at_least_zero
from unlearnx._data import materialize
from unlearnx._per_sample import per_sample
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import Teacher, labels_and_teacher
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class SCRUB(TrainedMethod):
    """In turns, increase the divergence from the original model on the forget set, and keep it low on the retain set.

    Args:
        epochs: passes over the retain set (or the corrected data), which minimise
            ``gamma * loss + alpha * divergence``.
        max_epochs: passes over the forget set, which maximise the divergence; one before each of the first passes over
            the retain set.
        lr: peak learning rate of a pass over the retain set.
        max_lr: peak learning rate of a pass over the forget set.
        alpha: weight of the divergence from the original model on the retain set.
        gamma: weight of the loss on the labels of the retain set.

    Raises:
        ValueError: a number is out of range.

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023, algorithm 1.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = SCRUB(epochs=2, max_epochs=1)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.gradient_evaluations  # one pass over 6 samples and two over 54
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
        check_at_least_zero(max_epochs=self.max_epochs, max_lr=self.max_lr, alpha=self.alpha, gamma=self.gamma)

    def _fit(self, work: Work, info: dict[str, Any]) -> None:
        (forgotten, old), (x, y) = materialize(work.request.forget_set), materialize(work.target)
        on_forgotten = Teacher(work.model, forgotten, old, self)
        retain_loss = labels_and_teacher(
            work, y, Teacher(work.model, x, y, self), label_weight=self.gamma, teacher_weight=self.alpha
        )

        @per_sample
        def forget_loss(output: Any, index: Tensor) -> Tensor:
            return -on_forgotten.divergence(output, index)

        for epoch in range(self.epochs):
            if epoch < self.max_epochs:
                data = (forgotten, torch.arange(count(old)))
                self._train(work, info, 1, self.max_lr, data=data, loss_fn=forget_loss, eval_mode=True)
            self._train(work, info, 1, self.lr, data=(x, torch.arange(count(y))), loss_fn=retain_loss)
