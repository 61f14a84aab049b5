"""The cross-entropy, whose second derivative with respect to the scores is known in closed form.

Neither log-probabilities nor anything else of the size of the scores is kept, which may be those of every token of a
vocabulary at every position: the scores themselves are there, and two numbers a position make probabilities of them,
rounded as torch rounds them. Over a vocabulary torch's sum of exponentials is off by some 5e-6, the same for all of a
position's probabilities, and gradients that are small differences of large ones have that many times over: of a
language model's norms up to 2e-4. A loop over samples has it too, and is what results are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx._labels import IGNORED
from unlearnx.curvature.blocks import blocks
from unlearnx.curvature.layers import Derivatives, can_differentiate
from unlearnx.curvature.rules.registry import Rule, rule_of


@rule_of(F.cross_entropy)
@dataclass
class CrossEntropy(Rule):
    """``F.cross_entropy`` with classes for labels."""

    input: Tensor
    target: Tensor
    weight: Tensor | None = None
    size_average: bool | None = None
    ignore_index: int = IGNORED
    reduce: bool | None = None
    reduction: str = "mean"
    label_smoothing: float = 0.0

    def twice(self, derivatives: Derivatives) -> Any:
        plain = self.weight is None and self.size_average is None and self.reduce is None and not self.label_smoothing
        if not plain or not self.input.requires_grad or not can_differentiate(self.input):
            return NotImplemented
        if self.input.dim() < 2 or self.target.is_floating_point() or not self._labels_fit():
            return NotImplemented
        counted = self.target != self.ignore_index
        losses = _Losses.apply(self.input.movedim(1, -1), self.target.where(counted, 0), counted)
        if self.reduction == "none":
            return losses
        return losses.sum() / counted.sum() if self.reduction == "mean" else losses.sum()

    def _labels_fit(self) -> bool:
        """Whether torch would take the labels; a GPU, whose answer would have to be waited for, finds out itself."""
        scores, target = self.input, self.target
        if target.shape != scores.shape[:1] + scores.shape[2:] or self.reduction not in ("none", "mean", "sum"):
            return False
        valid = ((target >= 0) & (target < scores.shape[1])) | (target == self.ignore_index)
        return target.dtype == torch.int64 and (target.device.type != "cpu" or bool(valid.all()))


class _Losses(torch.autograd.Function):
    """The losses of scores (..., classes) with labels (...), those that are not `counted` being zero."""

    @staticmethod
    def forward(ctx, scores, labels, counted):
        greatest, log_sum, losses = (torch.empty_like(labels, dtype=scores.dtype) for _ in range(3))
        for i in blocks(scores):
            log_p = F.log_softmax(scores[i], -1)
            greatest[i] = scores[i].amax(-1)
            log_sum[i] = -log_p.amax(-1)
            losses[i] = -log_p.gather(-1, labels[i][..., None])[..., 0]
        ctx.save_for_backward(scores, greatest, log_sum, labels, counted)
        return losses * counted

    @staticmethod
    def backward(ctx, dy):
        return _Slopes.apply(dy, *ctx.saved_tensors), None, None


class _Slopes(torch.autograd.Function):
    """Gradients of the losses with respect to the scores: ``dy (p - e_label)`` with probabilities p."""

    @staticmethod
    def forward(ctx, dy, scores, greatest, log_sum, labels, counted):
        ctx.save_for_backward(dy, scores, greatest, log_sum, labels, counted)
        slopes, factor = torch.empty_like(scores), (dy * counted)[..., None]
        for i in blocks(scores):
            log_p = _log_probabilities(scores[i], greatest[i], log_sum[i])
            to_log_p = torch.zeros_like(log_p).scatter_(-1, labels[i][..., None], -factor[i])
            slopes[i] = torch._log_softmax_backward_data(to_log_p, log_p, -1, scores.dtype)
        return slopes

    @staticmethod
    def backward(ctx, change):
        dy, scores, greatest, log_sum, labels, counted = ctx.saved_tensors
        if torch.is_grad_enabled():  # by autograd, for third derivatives
            p = scores.softmax(-1)
            mean = (p * change).sum(-1, keepdim=True)
            to_dy = (mean - change.gather(-1, labels[..., None]))[..., 0] * counted
            return to_dy, p * (change - mean) * (dy * counted)[..., None], None, None, None, None
        to_dy, to_scores, factor = torch.empty_like(dy), torch.empty_like(scores), (dy * counted)[..., None]
        for i in blocks(scores):
            p, t = _log_probabilities(scores[i], greatest[i], log_sum[i]).exp_(), change[i]
            mean = torch.linalg.vecdot(p, t)[..., None]
            torch.mul((t - mean).mul_(factor[i]), p, out=to_scores[i])
            to_dy[i] = (mean - t.gather(-1, labels[i][..., None]))[..., 0]
        return to_dy * counted, to_scores, None, None, None, None


def _log_probabilities(scores: Tensor, greatest: Tensor, log_sum: Tensor) -> Tensor:
    """In the order of torch's log_softmax: the greatest score is subtracted first."""
    return (scores - greatest[..., None]).sub_(log_sum[..., None])
