"""Selective synaptic dampening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from unlearnx._data import Data, size
from unlearnx._vectors import Vector
from unlearnx.curvature.fisher import FISHER_TYPES, fisher_diagonal
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.ops.ssd_dampen import ssd_dampen_


@dataclass
class SSD(Method):
    """Dampen the parameters that matter much more to the forget set than to the training set.

    Dampening costs a little on the retained data: a removal may raise their mean loss by ``max_increase``, and is not
    applied beyond that. A correction must not raise the loss on the corrected data at all.

    Args:
        alpha: how many times more important to the forget set a parameter has to be.
        lam: dampening constant.
        fisher_type: of the importances, as in :func:`unlearnx.curvature.fisher_diagonal`; ``"batch"`` is what the
            published code computes, and depends on ``batch_size``.
        max_increase: largest rise of the mean loss on the retained data that a removal may cost, in the unit of the
            loss (nats for cross-entropy).

    Raises:
        ValueError: a number is negative or not finite, or ``fisher_type`` is unknown.

    Source: Foster, Schoepf and Brintrup, AAAI 2024.
    """

    alpha: float = 10.0
    lam: float = 1.0
    fisher_type: str = "empirical"
    max_increase: float = 0.5

    def __post_init__(self) -> None:
        for name in ("alpha", "lam", "max_increase"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}, expected a finite number >= 0")
        if self.fisher_type not in FISHER_TYPES:
            raise ValueError(f"fisher_type is {self.fisher_type!r}, expected one of {', '.join(FISHER_TYPES)}")

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        request, n = work.request, size(work.request.dataset)
        if self.fisher_type == "batch":
            full = self._importance(work, request.dataset, "mean")
            forget = self._importance(work, request.forget_set, "mean")
        else:  # the training set is the retained and the forgotten points: no point is computed twice
            forget = self._importance(work, request.forget_set, "sum")
            retain = self._importance(work, request.retain_set, "sum")
            full = {name: (retain[name] + forget[name]) / n for name in retain}
            forget = {name: t / len(request.forget) for name, t in forget.items()}
        params = dict(work.model.named_parameters())
        chosen = [params[name] for name in work.names]
        with torch.no_grad():
            counts = ssd_dampen_(
                chosen, [full[k] for k in work.names], [forget[k] for k in work.names], self.alpha, self.lam
            )
        if not counts.any():
            raise NotApplied(f"no parameter matters more than alpha={self.alpha} times as much to the forget set")
        info["dampened"] = dict(zip(work.names, counts.tolist(), strict=True))
        info["dampened_share"] = int(counts.sum()) / sum(p.numel() for p in chosen)

    def _importance(self, work: Work, data: Data, reduction: str) -> Vector:
        work.gradient_evaluations += size(data)
        return fisher_diagonal(
            work.model,
            self.loss_fn,
            data,
            params=work.names,
            fisher_type=self.fisher_type,
            reduction=reduction,
            batch_size=self.batch_size,
            compute_dtype=self.autocast,
            generator=torch.Generator().manual_seed(self.seed),
            progress=self.progress,
        )

    def _judge(self, work: Work) -> float:
        if work.request.corrected is not None:
            return super()._judge(work)
        loss = work.corrected_loss()
        if not loss <= work.initial_loss + self.max_increase:
            raise NotApplied(
                f"the loss on the retained data would go from {work.initial_loss:.6g} to {loss:.6g}, by more than "
                f"max_increase={self.max_increase}"
            )
        return loss
