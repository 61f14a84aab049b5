"""Unlearning by bad teaching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from unlearnx._batches import count, joined, take
from unlearnx._checks import check_fraction
from unlearnx._data import materialize
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import Teacher, random_network
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod
from unlearnx.methods.untrained import Factory


@dataclass
class BadTeacher(TrainedMethod):
    """Imitate a network with random weights on the forget set, and the original model on part of the retain set.

    Args:
        epochs: passes over the forget set and the part of the retain set.
        lr: peak learning rate.
        retain_share: part, from 0 to 1, of the corrected data, or of the retain set, that is trained on too.
        temperature: softmax temperature at which outputs are compared.
        factory: returns an untrained model, whose outputs are imitated; None as for
            :class:`unlearnx.methods.Retrain`.

    Raises:
        ValueError: ``retain_share`` is not in [0, 1], or a module of the model cannot be reset.

    Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = BadTeacher(epochs=1)(model, Request.remove((x, y), range(6)))
        >>> outcome.gradient_evaluations  # 6 samples to forget, and 30 % of the other 54
        22
    """

    _nominal_epochs: ClassVar[int] = 2

    epochs: int | str = "auto"
    lr: float = 1e-3
    retain_share: float = 0.3
    temperature: float = 1.0
    factory: Factory | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(retain_share=self.retain_share)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, expected a number > 0")

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        (forgotten, old), (x, y) = materialize(work.request.forget_set), materialize(work.target)
        chosen = torch.randperm(count(y), generator=torch.Generator().manual_seed(self.seed))
        chosen = chosen[: round(self.retain_share * count(y))]
        x, y = joined([forgotten, take(x, chosen)]), joined([old, take(y, chosen)])
        teacher = Teacher(work.model, x, y, self, self.temperature)
        bad = Teacher(random_network(work.model, self.seed, self.factory), forgotten, old, self, self.temperature)
        teacher.target[: count(old)] = bad.target
        data = (x, torch.arange(count(y)))

        def train(epochs: int, rate: float) -> None:
            self._train(work, info, epochs, rate * self.lr, data=data, loss_fn=teacher.divergence)

        return train
