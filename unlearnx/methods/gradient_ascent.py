"""Gradient ascent on the loss of the forget set, alone or together with descent on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from unlearnx._batches import Nest
from unlearnx._checks import check_fraction
from unlearnx._data import size
from unlearnx._losses import SampleLoss
from unlearnx._pairs import Pair
from unlearnx._per_sample import per_sample
from unlearnx._sources import Changed
from unlearnx.methods.base import Work
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class GradientAscent(TrainedMethod):
    """Gradient ascent on the loss of the forget set. BatchNorm statistics do not change.

    Args:
        epochs: passes over the forget set.
        lr: peak learning rate.

    Source: Golatkar, Achille and Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020 ("negative gradient");
    Thudi et al., "Unrolling SGD", EuroS&P 2022.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model, request = nn.Linear(8, 3), Request.remove((x, y), range(6))
        >>> outcome = GradientAscent()(model, request)
        >>> loss = nn.functional.cross_entropy
        >>> mean_loss(outcome.model, loss, request.forget_set) > mean_loss(model, loss, request.forget_set)
        True
    """

    _nominal_epochs: ClassVar[int] = 5
    _keeps: ClassVar[bool] = False

    epochs: int | str = "auto"
    lr: float = 1e-3

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        loss = SampleLoss(self.loss_fn)

        @per_sample
        def negative_loss(output: Any, y: Any) -> Tensor:
            return -loss.each(output, y)

        data = work.request.trained_forget_set

        def train(epochs: int, rate: float) -> None:
            self._train(work, info, epochs, rate * self.lr, data=data, loss_fn=negative_loss, eval_mode=True)

        return train


@dataclass
class NegGrad(TrainedMethod):
    """Gradient descent on the corrected data (or the retain set) and ascent on the forget set, at the same time.

    Args:
        epochs: passes over both sets.
        lr: peak learning rate.
        weight: weight of the retain set's mean loss; that of the forget set's is ``1 - weight``.

    Raises:
        ValueError: ``weight`` is not in [0, 1].

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023 ("NegGrad+").

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = NegGrad(epochs=1, weight=0.9)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.loss_after < outcome.loss_before
        True
    """

    _nominal_epochs: ClassVar[int] = 2

    epochs: int | str = "auto"
    lr: float = 1e-3
    weight: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(weight=self.weight)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        both: Dataset[Any] = ConcatDataset([work.request.trained_target, work.request.trained_forget_set])
        total, forgotten = size(both), len(work.request.forget)
        retained = total - forgotten
        loss = SampleLoss(self.loss_fn)

        def weighted(x: Nest, y: Nest, index: Tensor) -> Pair:
            up, down = self.weight * total / retained, (self.weight - 1) * total / forgotten
            return x, (y, torch.where(index < retained, up, down))

        @per_sample
        def weighted_loss(output: Any, y: tuple[Nest, Tensor]) -> Tensor:
            return loss.each(output, y[0]) * y[1]

        data = Changed(both, weighted)

        def train(epochs: int, rate: float) -> None:
            self._train(work, info, epochs, rate * self.lr, data=data, loss_fn=weighted_loss)

        return train
