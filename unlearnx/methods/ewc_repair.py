"""Removing samples from the posterior of the weights by gradient ascent with elastic weight consolidation (EWC)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_zero
from unlearnx._data import size
from unlearnx._losses import SampleLoss
from unlearnx._modes import modes_kept
from unlearnx._per_sample import per_sample
from unlearnx.methods.base import Work, chance_loss
from unlearnx.methods.importance import check_importance, diagonal, mean_entry
from unlearnx.methods.rounds import Train
from unlearnx.methods.training_method import TrainedMethod


@dataclass
class EWCRepair(TrainedMethod):
    """Maximise the loss of the forget set C, with a penalty on changing weights that the other samples depend on.

    It maximises, by AdamW and starting from the weights theta_0,

        ``mean_C min(loss, bound) - N / |C| * sum_k (strength F_k + l2) / 2 * (theta_k - theta_0,k)^2``,

    where F is the mean Fisher diagonal of all N training samples. This is the log-density of a Gaussian posterior
    without the likelihood of C. The loss of a sample is bounded, so that a maximum exists. BatchNorm statistics do not
    change.

    Args:
        epochs: passes over C.
        lr: peak learning rate.
        strength: factor of the Fisher diagonal, 1 for the posterior as derived.
        l2: factor of the L2 penalty; None for `strength` times the mean of the Fisher diagonal's entries.
        bound: bound of a sample's loss; None for log(classes), the loss of guessing.
        fisher_type: importance measure F, as for :class:`unlearnx.methods.SSD`.

    Raises:
        ValueError: a number is out of range, ``fisher_type`` is unknown, or ``bound`` is None and the model returns no
            class scores.

    Source: Tanno et al., "Repairing Neural Networks by Leaving the Right Past Behind", NeurIPS 2022, section 4, whose
    ascent has no bound; Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = EWCRepair(epochs=2)(model, Request.remove((x, y), range(6)))
        >>> round(outcome.info["bound"], 3)  # log 3
        1.099
    """

    _nominal_epochs: ClassVar[int] = 10
    _keeps: ClassVar[bool] = False
    _reads_samples: ClassVar[bool] = True

    epochs: int | str = "auto"
    lr: float = 1e-3
    strength: float = 1.0
    l2: float | None = None
    bound: float | None = None
    fisher_type: str = "empirical"
    weight_decay: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(strength=self.strength, l2=self.l2, bound=self.bound)
        check_importance(self.fisher_type)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        request = work.request
        bound = chance_loss(work, request.forget_set) if self.bound is None else self.bound
        if bound is None:
            raise ValueError(
                "bound: is None, which means log(classes), but the model returns no class scores; expected a number"
            )
        with modes_kept(work.model), torch.enable_grad():
            work.model.eval()
            fisher = diagonal(self, work, request.dataset, self.fisher_type, "mean")
        l2 = self.strength * mean_entry(fisher) if self.l2 is None else self.l2
        scale = size(request.dataset) / len(request.forget)
        params = dict(work.model.named_parameters())
        penalised = [
            (params[name], params[name].detach().clone(), scale * (self.strength * fisher[name] + l2))
            for name in work.names
        ]
        loss = SampleLoss(self.loss_fn)

        @per_sample
        def penalised_loss(output: Any, y: Any) -> Tensor:
            distance = sum(((p - initial).square() * weight).sum() for p, initial, weight in penalised)
            return distance / 2 - loss.each(output, y).clamp(max=bound)

        data = request.trained_forget_set
        info.update(bound=bound, l2=l2)

        return self._training(work, info, data=data, loss_fn=penalised_loss, eval_mode=True)
