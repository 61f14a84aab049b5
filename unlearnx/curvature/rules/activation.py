"""Activations of transformers, of which a Gauss-Newton product keeps the input alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.layers import Derivatives, can_differentiate
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
        if self.inplace or not self.input.requires_grad or not can_differentiate(self.input):
            return NotImplemented
        return super().twice(derivatives) if derivatives.linear else _SiLU.apply(self.input)

    def value(self, x):
        return F.silu(x)

    def times_slope(self, t, x):
        return torch.ops.aten.silu_backward(t, x)


class _SiLU(torch.autograd.Function):
    """The function, with a derivative that is one node: torch records six, each of which keeps what it multiplies."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx, dy):
        return _SiLUSlope.apply(dy, *ctx.saved_tensors)


class _SiLUSlope(torch.autograd.Function):
    """``dy`` times the derivative at x."""

    @staticmethod
    def forward(ctx, dy, x):
        ctx.save_for_backward(dy, x)
        return torch.ops.aten.silu_backward(dy, x)

    @staticmethod
    def backward(ctx, t):
        dy, x = ctx.saved_tensors
        s = x.sigmoid()
        to_x = t * dy * s * (1 - s) * (2 + x * (1 - 2 * s))
        return t * s * (1 + x * (1 - s)), to_x


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
