"""Activations of transformers, of which products with the curvature keep the input alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.blocks import blocks
from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.linearised import Linearised
from unlearnx.curvature.rules.registry import Rule, rule_of


@dataclass
class _Activation(Rule, Linearised):
    """A function of single entries: both products of its Jacobian are that with the same diagonal matrix."""

    input: Tensor

    def twice(self, derivatives: Derivatives) -> Any:
        return derivatives.linearised(self, self.input) if self.input.requires_grad else NotImplemented

    def value(self, x):
        raise NotImplementedError

    def times_slope(self, t: Tensor, x: Tensor) -> Tensor:
        """`t` times the derivative at x."""
        raise NotImplementedError

    def tangent(self, changes, xs):
        return self.times_slope(changes[0], xs[0])

    def gradients(self, dy, xs, needed):
        return [self.times_slope(dy, xs[0])]


@rule_of(F.silu)
@dataclass
class SiLU(_Activation):
    """``F.silu``."""

    inplace: bool = False

    def twice(self, derivatives: Derivatives) -> Any:
        return NotImplemented if self.inplace else super().twice(derivatives)

    def value(self, x):
        return F.silu(x)

    def times_slope(self, t, x):
        return torch.ops.aten.silu_backward(t, x)

    def second_gradients(self, changes, dy, xs, needed):
        (change,), (x,) = changes, xs
        to_x = torch.empty_like(x)
        for i in blocks(x):
            s = x[i].sigmoid()
            slope = torch.addcmul(s, s, s, value=-1)  # s (1 - s), that of s
            s.mul_(-2).add_(1).mul_(x[i]).add_(2)
            torch.mul(slope.mul_(s).mul_(change[i]), dy[i], out=to_x[i])
        return self.times_slope(change, x), [to_x]


@rule_of(F.gelu)
@dataclass
class GELU(_Activation):
    """``F.gelu``."""

    approximate: str = "none"

    def value(self, x):
        return F.gelu(x, approximate=self.approximate)

    def times_slope(self, t, x):
        return torch.ops.aten.gelu_backward(t, x, approximate=self.approximate)


@rule_of(torch.tanh, Tensor.tanh)
@dataclass
class Tanh(_Activation):
    """``torch.tanh``."""

    def value(self, x):
        return x.tanh()

    def times_slope(self, t, x):
        return torch.ops.aten.tanh_backward(t, x.tanh())
