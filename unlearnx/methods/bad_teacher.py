"""Unlearning by bad teaching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from unlearnx._batches import Nest, take
from unlearnx._checks import check_fraction
from unlearnx._data import size
from unlearnx.methods.base import Work
from unlearnx.methods.distillation import Teacher, lessons, random_network
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
        forget, target = work.request.trained_forget_set, work.request.trained_target
        n, forgotten = size(target), len(work.request.forget)
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: round(self.retain_share * n)]
        settings = (self.loss_fn, work.pace.autocast, self.temperature)
        good = Teacher(work.model, *settings)
        bad = Teacher(random_network(work.model, self.seed, self.factory), *settings)

        def targets(x: Nest, y: Nest, index: Tensor) -> Tensor:
            outputs = good.targets(x, y)
            forgets = (index < forgotten).nonzero().flatten()
            if len(forgets):
                outputs[forgets.to(outputs.device)] = bad.targets(take(x, forgets), take(y, forgets))
            return outputs

        both: Dataset[Any] = ConcatDataset([forget, Subset(target, chosen.tolist())])
        data = lessons(both, targets, good.counts)

        return self._training(work, info, data=data, loss_fn=good.divergence)
