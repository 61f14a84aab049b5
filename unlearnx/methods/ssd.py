"""Selective synaptic dampening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from unlearnx._checks import check_at_least_zero
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.methods.importance import Importance, check_importance
from unlearnx.ops.ssd_dampen import ssd_dampen_


@dataclass
class SSD(Method):
    """Dampen the parameters that matter much more to the forget set than to the training set.

    Args:
        alpha: how many times more important to the forget set a parameter has to be; ``"auto"`` takes the percentile
            ``100 - ln(1 + 100 |forget| / |all|)`` of these ratios, so that the larger the forget set, the more
            parameters are dampened.
        lam: dampening constant.
        fisher_type: of the importances, as in :func:`unlearnx.curvature.fisher_diagonal`; ``"batch"`` is what the
            published code computes, and depends on ``batch_size``; ``"label_free"`` is the squared gradient of the
            squared length of the output, which needs no labels.

    Raises:
        ValueError: a number is negative or not finite, or ``fisher_type`` is unknown.

    Source: Foster, Schoepf and Brintrup, AAAI 2024; ``alpha="auto"``: Schoepf, Foster and Brintrup, "Parameter-Tuning-
    Free Data Entry Error Unlearning with Adaptive Selective Synaptic Dampening", 2024; ``"label_free"``: Foster et al.,
    "Loss-Free Machine Unlearning", 2024, which averages absolute gradients where this averages their squares.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = SSD(alpha=2.0)(model, Request.remove_class((x, y), 1))
        >>> 0 < outcome.info["dampened_share"] < 1, list(outcome.info["dampened"])[:2]
        (True, ['0.weight', '0.bias'])
    """

    alpha: float | str = "auto"
    lam: float = 1.0
    fisher_type: str = "empirical"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.alpha, str) and self.alpha != "auto":
            raise ValueError(f"alpha is {self.alpha!r}, expected a finite number >= 0 or 'auto'")
        check_at_least_zero(alpha=None if isinstance(self.alpha, str) else self.alpha, lam=self.lam)
        check_importance(self.fisher_type)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        importance = Importance.measure(self, work, self.fisher_type)
        alpha = self.alpha if not isinstance(self.alpha, str) else automatic_alpha(importance, work)
        info["alpha"] = alpha
        params = dict(work.model.named_parameters())
        chosen = [params[name] for name in work.names]
        with torch.no_grad():
            counts = ssd_dampen_(
                chosen,
                [importance.full[name] for name in work.names],
                [importance.forget[name] for name in work.names],
                alpha,
                self.lam,
            )
        if not counts.any():
            raise NotApplied(f"no parameter matters more than alpha={alpha} times as much to the forget set")
        info["dampened"] = dict(zip(work.names, counts.tolist(), strict=True))
        info["dampened_share"] = int(counts.sum()) / sum(p.numel() for p in chosen)


def automatic_alpha(importance: Importance, work: Work) -> float:
    """The percentile of the ratios of importance that adaptive SSD takes for its threshold."""
    ratios = torch.cat([(importance.forget[name] / importance.full[name]).flatten() for name in work.names])
    ratios = ratios[ratios.isfinite()]
    if not len(ratios):
        raise NotApplied("no parameter matters to the training set")
    share = len(work.request.forget) / len(work.request.dataset)  # type: ignore[arg-type]
    above = int(len(ratios) * math.log1p(100 * share) / 100)
    return float(ratios.kthvalue(max(1, len(ratios) - above)).values)
