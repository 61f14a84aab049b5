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
        weight, bias, place = self.weight, self.bias, tape.place(self.input)
        if place is None or self.input.dim() < 2 or weight.dim() != 2:
            return NotImplemented
        if not tape.is_weight(weight) and weight.requires_grad:  # it may be another one for every sample
            return NotImplemented
        output, x, samples = F.linear(self.input, weight, bias), self.input.detach(), tape.samples

        def contributions(dy: Tensor) -> Parts:
            dy = place.first(dy, samples)
            yield weight, LinearWeight(place.first(x.to(dy.dtype), samples), dy)
            if bias is not None:
                yield bias, StoredGradients(position_sums(dy))

        return tape.watch(output, (weight, bias), contributions)

    def twice(self, derivatives: Derivatives) -> Any:
        if self.input.dim() < 2 or self.weight.dim() != 2:
            return NotImplemented
        return derivatives.of(LinearLayer(), self.input, self.weight, self.bias)


def linear_of(tape: Recorder, x: Tensor, axis: int, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer as a part of another rule, on inputs whose samples are dimension `axis`."""
    if not tape.is_weight(weight) and not tape.is_weight(bias):
        return F.linear(x, weight, bias)
    return Linear(tape.put(x, axis), weight, bias).watched(tape)


class LinearLayer(Layer):
    """``x @ weight.T + bias``."""

    def value(self, x, weight, bias):
        return F.linear(x, weight, bias)

    def tangent(self, dx, weight, other=None):
        if other is None or not other.is_contiguous():
            return super().tangent(dx, weight, other)
        other.flatten(0, -2).addmm_(dx.flatten(0, -2), weight.mT)  # into its memory: of a wide head that is much
        return other

    def gradients(self, dy, x, weight, needed):
        return [
            dy @ weight if needed[0] else None,
            dy.flatten(0, -2).mT @ x.flatten(0, -2) if needed[1] else None,
            dy.flatten(0, -2).sum(0) if needed[2] else None,
        ]
