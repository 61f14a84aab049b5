"""Linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.contributions import LinearWeight, StoredGradients, position_sums
from unlearnx.curvature.layers import Derivatives, Layer
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of


@rule_of(F.linear)
@dataclass
class Linear(Rule):
    """``F.linear``."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def watched(self, tape: Recorder) -> Any:
        weight, bias, axis = self.weight, self.bias, tape.sample_axis(self.input)
        if axis is None or self.input.dim() < 2:
            return NotImplemented
        output, x = F.linear(self.input, weight, bias), self.input.detach()

        def contributions(dy: Tensor) -> Parts:
            dy = dy.movedim(axis, 0)
            yield weight, LinearWeight(x.to(dy.dtype).movedim(axis, 0), dy)
            if bias is not None:
                yield bias, StoredGradients(position_sums(dy))

        return tape.watch(output, (weight, bias), contributions)

    def twice(self, derivatives: Derivatives) -> Any:
        if self.input.dim() < 2 or self.weight.dim() != 2:
            return NotImplemented
        return derivatives.of(LinearLayer(), self.input, self.weight, self.bias)


class LinearLayer(Layer):
    """``x @ weight.T + bias``."""

    def value(self, x, weight, bias):
        return F.linear(x, weight, bias)

    def tangent(self, dx, weight, other=None):
        if other is not None and dx.dim() == 2:
            return other.addmm_(dx, weight.mT)
        return super().tangent(dx, weight, other)

    def gradients(self, dy, x, weight, needed):
        return [
            dy @ weight if needed[0] else None,
            dy.flatten(0, -2).mT @ x.flatten(0, -2) if needed[1] else None,
            dy.flatten(0, -2).sum(0) if needed[2] else None,
        ]
