"""Fisher masking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from unlearnx._checks import check_fraction
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.methods.importance import Importance, check_importance
from unlearnx.ops.fisher_mask import fisher_mask_


@dataclass
class FisherMasking(Method):
    """Set to zero the parameters that are most important to the forget set compared with the retain set.

    Args:
        ratio: fraction of the chosen parameters to set to zero: those with the largest difference of mean importances.
        fisher_type: importance measure, as for :class:`unlearnx.methods.SSD`.

    Masking should be followed by training: ``Pipeline([FisherMasking(), FineTune()])``.

    Raises:
        ValueError: ``ratio`` is not in [0, 1], or ``fisher_type`` is unknown.

    Source: Liu et al., "Unlearning with Fisher Masking", 2023.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = FisherMasking(ratio=0.25)(nn.Linear(8, 3), Request.remove_class((x, y), 1))
        >>> sum(outcome.info["masked"].values())  # of 27 parameters
        6
    """

    ratio: float = 0.005
    fisher_type: str = "empirical"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(ratio=self.ratio)
        check_importance(self.fisher_type)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        importance = Importance.measure(self, work, self.fisher_type)
        params = dict(work.model.named_parameters())
        chosen = [params[name] for name in work.names]
        with torch.no_grad():
            counts = fisher_mask_(
                chosen,
                [importance.forget[name] for name in work.names],
                [importance.retain[name] for name in work.names],
                self.ratio,
            )
        if not counts.any():
            raise NotApplied(
                f"ratio={self.ratio} of {sum(p.numel() for p in chosen)} parameters is less than one parameter"
            )
        info["masked"] = dict(zip(work.names, counts.tolist(), strict=True))
