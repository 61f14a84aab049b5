"""Fine-tuning towards sparse weights, which hold less of single samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearnx._checks import check_at_least_zero
from unlearnx.methods.base import Work
from unlearnx.methods.fine_tune import FineTune
from unlearnx.methods.rounds import Train


@dataclass
class L1Sparse(FineTune):
    """:class:`FineTune` with ``gamma * ||theta||_1`` beside the mean loss; gamma falls linearly to zero over the steps.

    Args:
        epochs: passes over the data.
        lr: peak learning rate of AdamW's one-cycle schedule.
        anchor: as for :class:`FineTune`.
        gamma: weight of the sum of the absolute values of the chosen parameters, at the first step.

    Raises:
        ValueError: ``gamma`` is negative.

    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, equation 2, with the decay of
    section 4.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model, request, settings = nn.Linear(8, 3), Request.remove((x, y), range(6)), {"epochs": 20, "lr": 1e-2}
        >>> dense, sparse = (L1Sparse(gamma=g, max_increase=9.0, **settings)(model, request) for g in (0.0, 0.1))
        >>> bool(sparse.model.weight.abs().sum() < dense.model.weight.abs().sum())
        True
    """

    gamma: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(gamma=self.gamma)

    def _trainer(self, work: Work, info: dict[str, Any], *, on_all: bool = False) -> Train:
        return self._training(work, info, anchor=self.anchor, l1=self.gamma, on_all=on_all)
