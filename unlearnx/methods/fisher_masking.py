"""Fisher masking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnx._checks import check_fraction
from unlearnx.methods.base import NotApplied, Work
from unlearnx.methods.importance import Importance, check_importance
from unlearnx.methods.stored import FromFactors
from unlearnx.methods.strength import given
from unlearnx.ops.fisher_mask import fisher_mask_

RATIO = 0.005  # where nothing tells how much is to be forgotten, and where the search begins


@dataclass
class FisherMasking(FromFactors):
    """Set to zero the parameters that are most important to the forget set compared with the retain set.

    Args:
        ratio: fraction of the chosen parameters to set to zero: those with the largest difference of mean importances.
            ``"auto"`` finds the smallest one that forgets.
        fisher_type, factors: as for :class:`unlearnx.methods.SSD`.

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

    _strength: ClassVar[str | None] = "ratio"

    ratio: float | str = "auto"
    fisher_type: str = "empirical"

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = given("ratio", self.ratio)
        if ratio is not None:
            check_fraction(ratio=ratio)
        check_importance(self.fisher_type)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        importance = Importance.measure(self, work, self.fisher_type)
        params = dict(work.model.named_parameters())
        chosen = [params[name] for name in work.names]
        forget, retain = ([by[name] for name in work.names] for by in (importance.forget, importance.retain))

        @torch.no_grad()
        def mask(ratio: float) -> Tensor:
            return fisher_mask_(chosen, forget, retain, ratio)

        ratio = given("ratio", self.ratio)
        ratio = work.least_strength(mask, RATIO, info, most=1.0) if ratio is None else ratio
        counts = mask(ratio)
        info["ratio"] = ratio
        if not counts.any():
            raise NotApplied(
                f"ratio={ratio:g} of {sum(p.numel() for p in chosen)} parameters is less than one parameter"
            )
        info["masked"] = dict(zip(work.names, counts.tolist(), strict=True))
