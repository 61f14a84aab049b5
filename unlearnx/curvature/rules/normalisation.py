"""Normalisation layers, which end with a scale and a shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.contributions import StoredGradients
from unlearnx.curvature.layers import Derivatives, Layer
from unlearnx.curvature.linearised import Linearised
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops.scale_shift_grad import scale_shift_grad_diff


class _ScaleShift(Rule):
    """A normalisation followed by a scale and a shift along dimension `dim`.

    With parameters of several dimensions (layer norm), these are flattened to `dim` first.
    """

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    dim = -1

    def value(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The function; called without parameters, it normalises."""
        raise NotImplementedError

    def statistics(self) -> dict[str, Tensor]:
        """Where these are given, the kernel normalises as it reads the input."""
        return {}

    def watched(self, tape: Recorder) -> Any:
        place, samples = tape.place(self.input), tape.samples
        if place is None or (place.folded and self.dim > 0):
            return NotImplemented
        weight, bias, dim, x, value = self.weight, self.bias, self.dim, self.input.detach(), self.value
        statistics, output = self.statistics(), value(self.input, weight, bias)
        output_dtype = output.dtype  # the closure must not hold the output, which holds the closure through its graph

        def contributions(dy: Tensor) -> Parts:
            normalised = x if statistics else value(x.to(output_dtype), None, None)  # in the dtype that autocast chose
            if dim < 0 and weight is not None and weight.dim() > 1:
                normalised, dy = normalised.flatten(-weight.dim()), dy.flatten(-weight.dim())
            wide = compute_dtype(dy)
            pair = (place.first(t, samples).to(wide) for t in (normalised, dy))
            scale, shift = scale_shift_grad_diff(*pair, dim=dim, reduction="none", **statistics)
            for parameter, rows in ((weight, scale), (bias, shift)):
                if parameter is not None:
                    yield parameter, StoredGradients(rows.view(-1, *parameter.shape))

        return tape.watch(output, (weight, bias), contributions)


@rule_of(F.batch_norm)
@dataclass
class BatchNorm(_ScaleShift):
    """``F.batch_norm`` in eval mode; in train mode, samples depend on each other."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5
    dim = 1

    def value(self, x, weight, bias):
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, self.momentum, self.eps)

    def statistics(self):
        assert self.running_mean is not None
        assert self.running_var is not None
        return {"mean": self.running_mean, "rstd": (self.running_var + self.eps).rsqrt()}

    def watched(self, tape: Recorder) -> Any:
        return super().watched(tape) if self._is_frozen() else NotImplemented

    def twice(self, derivatives: Derivatives) -> Any:
        if not self._is_frozen() or self.weight is None or self.statistics()["mean"].dtype != self.input.dtype:
            return NotImplemented
        return derivatives.of(FrozenBatchNorm(**self.statistics()), self.input, self.weight, self.bias)

    def _is_frozen(self) -> bool:
        return not self.training and self.running_mean is not None and self.running_var is not None


@rule_of(F.group_norm)
@dataclass
class GroupNorm(_ScaleShift):
    """``F.group_norm``."""

    input: Tensor
    num_groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    dim = 1

    def value(self, x, weight, bias):
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


@rule_of(F.layer_norm)
@dataclass
class LayerNorm(_ScaleShift):
    """``F.layer_norm``."""

    input: Tensor
    normalized_shape: Any
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5

    def value(self, x, weight, bias):
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    def twice(self, derivatives: Derivatives) -> Any:
        # Second derivatives are torch's: they keep no more, and the tangent below has statistics without a gradient.
        if not derivatives.linear or self.weight is None or len(self.normalized_shape) != 1:
            return NotImplemented
        return derivatives.linearised(_LastDimensionNormalised(self.eps), self.input, self.weight, self.bias)


@rule_of(F.rms_norm)
@dataclass
class RMSNorm(_ScaleShift):
    """``F.rms_norm``."""

    input: Tensor
    normalized_shape: Any
    weight: Tensor | None = None
    eps: float | None = None

    def value(self, x, weight, bias):
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class FrozenBatchNorm(Layer):
    """Batch norm with fixed statistics: linear in its input minus the mean."""

    def __init__(self, mean: Tensor, rstd: Tensor):
        self.mean, self.rstd = mean, rstd

    @staticmethod
    def _column(channels: Tensor, x: Tensor) -> Tensor:
        """One value per channel, shaped to broadcast to x."""
        return channels.view(-1, *[1] * (x.dim() - 2))

    def value(self, x, weight, bias):
        scale = self.rstd * weight
        shift = -self.mean * scale if bias is None else bias - self.mean * scale
        return torch.addcmul(self._column(shift, x), x, self._column(scale, x))

    def tangent(self, dx, weight, other=None):
        scale = self._column(self.rstd * weight, dx)
        return dx * scale if other is None else other.addcmul_(dx, scale)

    def weight_gradient_tangent(self, dy, dx, weight):
        return self.rstd * self._sums(dy, dx)[0]

    def gradients(self, dy, x, weight, needed):
        dx = self.tangent(dy, weight) if needed[0] else None
        if not any(needed[1:]):
            return dx, None, None
        scale, shift = self._sums(dy, x)
        return dx, self.rstd * (scale - self.mean * shift) if needed[1] else None, shift if needed[2] else None

    @staticmethod
    def _sums(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of dy * x and of dy, one per channel."""
        if x.dim() > 2 and not torch.is_grad_enabled():
            return scale_shift_grad_diff(x, dy, dim=1)
        dims = [d for d in range(x.dim()) if d != 1]
        return (dy * x).sum(dims), dy.sum(dims)


class _LastDimensionNormalised(Linearised):
    """Layer norm along the last dimension."""

    def __init__(self, eps: float):
        self.eps = eps

    def value(self, x, weight, bias):
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def tangent(self, changes, xs):
        (of_x, of_weight, of_bias), (x, weight, _) = changes, xs
        normalised, _, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, self.eps)
        change = None if of_weight is None else normalised * of_weight
        if of_x is not None:
            step = of_x - of_x.mean(-1, keepdim=True)
            step -= normalised * (normalised * of_x).mean(-1, keepdim=True)
            step = step.mul_(rstd).mul_(weight)
            change = step if change is None else change.add_(step)
        if of_bias is None:
            return change
        return of_bias.expand_as(x) if change is None else change.add_(of_bias)
