"""Negative preference optimisation: the forget set's own answers are those that are not preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from unlearnx._checks import check_above_zero, check_at_least_zero
from unlearnx.methods.base import Work
from unlearnx.methods.both_sets import BothSets, Forgetting
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class NPO(TrainedMethod):
    """Make the labels of the forget set less likely than the original model has them, and less so the further.

    ``2 / beta * softplus(beta * (log p - log p_original))`` in the place of the gradient ascent of
    :class:`NegGrad`: its gradient fades as the labels become unlikely, so that the model does not collapse. The
    log-probability of a sample is minus its loss; of texts that is the sum over tokens with
    ``loss_fn=unlearnx.losses.causal_lm(per="token")``.

    Args:
        epochs: passes over both sets.
        lr: peak learning rate.
        beta: how fast the gradient fades, in 1/nats; towards 0 this is gradient ascent.
        weight: of the mean loss on the corrected data or the retain set, beside the forget set's.

    Raises:
        ValueError: ``beta`` is not above zero, or ``weight`` is negative.

    Source: Zhang et al., "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
    COLM 2024, equation 3, with the retain loss of section 3 (NPO+RT).

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = NPO(epochs=1)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.applied, outcome.gradient_evaluations
        (True, 60)
    """

    _nominal_epochs: ClassVar[int] = 2
    _per: ClassVar[str] = "token"

    epochs: int | str = "auto"
    lr: float = 1e-3
    beta: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(weight=self.weight)
        check_above_zero(beta=self.beta)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        both = BothSets(work.request)
        loss_fn = both.loss(self.loss_fn, self.weight, self._forgetting(work))

        return self._training(work, info, data=both.data, loss_fn=loss_fn)

    def _forgetting(self, work: Work) -> Forgetting:
        """The loss of samples of the forget set, from their losses and places in it."""
        original = work.losses(work.request.forget_set)

        def forgetting(losses: Tensor, places: Tensor) -> Tensor:
            return 2 / self.beta * F.softplus(self.beta * (original[places].to(losses) - losses))

        return forgetting


@dataclass
class SimNPO(NPO):
    """:class:`NPO` without the original model: the gradient fades as the labels become unlikely, whatever they were.

    ``2 / beta * softplus(margin - beta * loss)``, where the loss of a text is the mean over its tokens, as
    ``loss_fn=unlearnx.losses.causal_lm()`` has it: long texts are not forgotten at the expense of short ones.
    The defaults of `beta`, `weight` and `margin` are those of open-unlearning on TOFU.

    Args:
        epochs: passes over both sets.
        lr: peak learning rate.
        beta: how fast the gradient fades, in 1/nats.
        weight: of the mean loss on the corrected data or the retain set, beside the forget set's.
        margin: gamma of the paper: below a loss of ``margin / beta`` the gradient is more than half of its greatest.

    Raises:
        ValueError: ``beta`` is not above zero, or ``weight`` or ``margin`` is negative.

    Source: Fan et al., "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning", 2024,
    equation 4.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> SimNPO(epochs=1)(nn.Linear(8, 3), Request.remove((x, y), range(6))).applied
        True
    """

    _per: ClassVar[str] = "sample"

    beta: float = 4.5
    weight: float = 8.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(margin=self.margin)

    def _forgetting(self, work: Work) -> Forgetting:
        def forgetting(losses: Tensor, places: Tensor) -> Tensor:
            return 2 / self.beta * F.softplus(self.margin - self.beta * losses)

        return forgetting
