"""SCRUB: distillation towards the original model on the retain set and away from it on the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from unlearnx._checks import check_at_least_zero
from unlearnx._per_sample import per_sample
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import Lesson, Teacher, labels_and_teacher
from unlearnx.methods.rounds import Train
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

    _nominal_epochs: ClassVar[int] = 4

    epochs: int | str = "auto"
    max_epochs: int = 3
    lr: float = 1e-3
    max_lr: float = 2e-3
    alpha: float = 0.5
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(max_epochs=self.max_epochs, max_lr=self.max_lr, alpha=self.alpha, gamma=self.gamma)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        original = Teacher(work.model, self.loss_fn, work.pace.autocast)
        forget, retain = (
            original.taught(data) for data in (work.request.trained_forget_set, work.request.trained_target)
        )
        retain_loss = labels_and_teacher(self, original, label_weight=self.gamma, teacher_weight=self.alpha)

        @per_sample
        def forget_loss(output: Any, lesson: Lesson) -> Tensor:
            return -original.divergence(output, lesson)

        def train(epochs: int, rate: float) -> None:
            share = 1.0 if self._gives_epochs() else epochs / self._nominal_epochs
            for epoch in range(epochs):
                if epoch < share * self.max_epochs:
                    self._train(work, info, 1, rate * self.max_lr, data=forget, loss_fn=forget_loss, eval_mode=True)
                self._train(work, info, 1, rate * self.lr, data=retain, loss_fn=retain_loss)

        return train
