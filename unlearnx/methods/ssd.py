"""Selective synaptic dampening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_zero
from unlearnx.methods.base import NotApplied, Work
from unlearnx.methods.importance import Importance, check_importance
from unlearnx.methods.stored import FromFactors, training_samples
from unlearnx.methods.strength import given
from unlearnx.ops.ssd_dampen import ssd_dampen_

ADAPTIVE = "adaptive"


@dataclass
class SSD(FromFactors):
    """Dampen the parameters that are much more important to the forget set than to the training set.

    Args:
        alpha: a parameter is dampened if its importance to the forget set is more than ``alpha`` times that to the
            training set. ``"auto"`` finds the largest one that forgets; below 1, ``lam`` is multiplied by it, since
            dampening grows no further otherwise. ``"adaptive"`` takes the percentile
            ``100 - ln(1 + 100 |forget| / |all|)`` of the ratios: the larger the forget set, the more parameters are
            dampened.
        lam: dampening constant.
        fisher_type: importance measure, as in :func:`unlearnx.curvature.fisher_diagonal`; ``"batch"`` is that of the
            published code, and depends on ``batch_size``; ``"label_free"`` is the mean absolute gradient of the squared
            norm of a sample's output, ``|d ||f(x)||^2 / d theta|`` (LFSSD): it needs no labels, and the time of the
            gradients of single samples. With `factors`, theirs is taken.
        factors: of the training data, whose diagonal then stands for the importance to them; no retain set is needed.

    Raises:
        ValueError: a number is negative or not finite, or ``fisher_type`` is unknown.

    Source: Foster, Schoepf and Brintrup, AAAI 2024; ``"adaptive"``: Schoepf, Foster and Brintrup, "Parameter-Tuning-
    Free Data Entry Error Unlearning with Adaptive Selective Synaptic Dampening", 2024; ``"label_free"``: Foster et al.,
    "Loss-Free Machine Unlearning", ICLR 2024 (tiny papers); its code takes the absolute value of batch means.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> outcome = SSD(alpha=2.0)(model, Request.remove_class((x, y), 1))
        >>> 0 < outcome.info["dampened_share"] < 1, list(outcome.info["dampened"])[:2]
        (True, ['0.weight', '0.bias'])
    """

    _strength: ClassVar[str | None] = "alpha"

    alpha: float | str = "auto"
    lam: float = 1.0
    fisher_type: str = "empirical"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(alpha=None if self.alpha == ADAPTIVE else given("alpha", self.alpha), lam=self.lam)
        check_importance(self.fisher_type)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        importance = Importance.measure(self, work, self.fisher_type)
        params = dict(work.model.named_parameters())
        chosen = [params[name] for name in work.names]
        full, forget = ([by[name] for name in work.names] for by in (importance.full, importance.forget))

        @torch.no_grad()
        def dampen(alpha: float) -> Tensor:
            return ssd_dampen_(chosen, full, forget, alpha, lam(alpha))

        def lam(alpha: float) -> float:
            # Below 1, alpha alone changes nothing more: the parameters that it adds have factors of lam and above.
            return self.lam * min(1.0, alpha) if self._finds_strength else self.lam

        alpha = adaptive_alpha(importance, work) if isinstance(self.alpha, str) else self.alpha
        if self._finds_strength:
            alpha = 1 / work.least_strength(lambda strength: dampen(1 / strength), 1 / alpha, info)
        counts = dampen(alpha)
        info.update(alpha=alpha, lam=lam(alpha))
        if not counts.any():
            raise NotApplied(
                f"no parameter is more than alpha={alpha} times as important to the forget set as to the training set"
            )
        info["dampened"] = dict(zip(work.names, counts.tolist(), strict=True))
        info["dampened_share"] = int(counts.sum()) / sum(p.numel() for p in chosen)


def adaptive_alpha(importance: Importance, work: Work) -> float:
    """The threshold of adaptive SSD: a percentile of the ratios of the importances, see :class:`SSD`."""
    ratios = torch.cat([(importance.forget[name] / importance.full[name]).flatten() for name in work.names])
    ratios = ratios[ratios.isfinite()]
    if not len(ratios):
        raise NotApplied("all importances to the training set are 0 or not finite, so their ratios have no percentile")
    fraction = len(work.request.forget) / training_samples(work)
    above = int(len(ratios) * math.log1p(100 * fraction) / 100)
    return float(ratios.kthvalue(max(1, len(ratios) - above)).values.clamp(min=torch.finfo(torch.float32).tiny))
