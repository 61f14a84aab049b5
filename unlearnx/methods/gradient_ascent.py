"""Gradient ascent on the loss of the forget set, alone or together with descent on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from unlearnx._checks import check_fraction
from unlearnx._losses import SampleLoss
from unlearnx._per_sample import per_sample
from unlearnx.methods.base import Work
from unlearnx.methods.both_sets import BothSets
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

        return self._training(work, info, data=data, loss_fn=negative_loss, eval_mode=True)


@dataclass
class NegGrad(TrainedMethod):
    """Gradient descent on the corrected data (or the retain set) and ascent on the forget set, at the same time.

    Args:
        epochs: passes over both sets.
        lr: peak learning rate.
        weight: weight of the retain set's mean loss; that of the forget set's is ``1 - weight``.

    Raises:
        ValueError: ``weight`` is not in [0, 1].

    Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023 ("NegGrad+"); with ``weight=0.5`` the
    GradDiff of Maini et al., "TOFU", COLM 2024.

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
        both = BothSets(work.request)
        loss_fn = both.loss(self.loss_fn, self.weight, lambda losses, _: (self.weight - 1) * losses)

        return self._training(work, info, data=both.data, loss_fn=loss_fn)
