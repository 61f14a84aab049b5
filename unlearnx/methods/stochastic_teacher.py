"""Unlearning by a stochastic teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearnx._checks import check_at_least_one, check_at_least_zero
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import Teacher, labels_and_teacher, random_network
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod
from unlearnx.methods.untrained import Factory


@dataclass
class StochasticTeacher(TrainedMethod):
    """Learn the outputs of a random network on the forget set, then train on the rest close to the original model.

    The second phase trains on the corrected data, or the retain set, with ``loss + alpha * KL(original || model)``.

    Args:
        alpha: weight of the divergence from the original model's outputs.
        erase_epochs: passes over the forget set in the first phase.
        erase_lr: peak learning rate of the first phase.
        epochs: passes over the data in the second phase; 0 skips it.
        lr: peak learning rate of the second phase.
        factory: returns an untrained model, whose outputs are imitated; None as for
            :class:`unlearnx.methods.Retrain`.

    Raises:
        ValueError: a number is out of range, or a module of the model has no ``reset_parameters()``.

    Source: Zhang et al., "Machine Unlearning by a Stochastic Teacher Network" ("Erasing and Reconstruction"), 2023.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = StochasticTeacher(erase_epochs=1, epochs=1)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.gradient_evaluations  # 6 samples in the first phase, 54 in the second
        60
    """

    _fewest_epochs: ClassVar[int] = 0
    _nominal_epochs: ClassVar[int] = 2

    alpha: float = 1.0
    erase_epochs: int = 4
    erase_lr: float = 2e-3
    epochs: int | str = "auto"
    lr: float = 1e-3
    factory: Factory | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(erase_epochs=self.erase_epochs)
        check_at_least_zero(alpha=self.alpha, erase_lr=self.erase_lr)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        settings = (self.loss_fn, work.pace.autocast)
        original = Teacher(work.model, *settings)
        random_teacher = Teacher(random_network(work.model, self.seed, self.factory), *settings)
        to_erase = random_teacher.taught(work.request.trained_forget_set)
        to_learn = original.taught(work.request.trained_target)
        reconstruct = labels_and_teacher(self, original, label_weight=1.0, teacher_weight=self.alpha)

        def train(epochs: int, rate: float) -> None:
            lr, loss_fn = rate * self.erase_lr, random_teacher.divergence
            self._train(work, info, self.erase_epochs, lr, data=to_erase, loss_fn=loss_fn, eval_mode=True)
            if epochs:
                self._train(work, info, epochs, rate * self.lr, data=to_learn, loss_fn=reconstruct)

        return train
