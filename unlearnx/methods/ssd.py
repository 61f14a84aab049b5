"""Selective synaptic dampening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from unlearnx._checks import check_deterministic
from unlearnx._data import Data, size
from unlearnx._vectors import Vector
from unlearnx.curvature import fisher_diagonal
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.ops.ssd_dampen import ssd_dampen_


@dataclass
class SSD(Method):
    """Dampen the parameters that matter much more to the forget set than to the training set.

    A removal is judged by the forget set, so a small loss on the retained data is its price and only a loss that
    is not finite keeps it from being applied; a correction must not make the corrected data worse.

    Args:
        alpha: how many times more important to the forget set a parameter has to be.
        lam: dampening constant.
        fisher_type: of the importances, as in :func:`unlearnx.curvature.fisher_diagonal`; ``"batch"`` is what the
            published code computes, and depends on ``batch_size``.

    Source: Foster, Schoepf and Brintrup, AAAI 2024.
    """

    alpha: float = 10.0
    lam: float = 1.0
    fisher_type: str = "empirical"

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        check_deterministic(work.model)
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

    def _judge(self, work: Work, info: dict[str, Any]) -> None:
        if work.request.corrected is not None:
            return super()._judge(work, info)
        loss = work.corrected_loss()
        info["corrected_loss"] = [work.initial_loss, loss]
        if not math.isfinite(loss):
            raise NotApplied("the loss on the retained data would not be finite")
        return None
