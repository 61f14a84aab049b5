"""Convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearnx._memory_order import channels_last
from unlearnx.curvature.contributions import ConvolutionWeight, StoredGradients, position_sums
from unlearnx.curvature.layers import Derivatives, Layer
from unlearnx.curvature.places import Place
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of


@rule_of(torch.conv1d, torch.conv2d, torch.conv3d)
@dataclass
class Convolution(Rule):
    """``torch.conv1d`` and its like; those in three dimensions have no kernels for per-sample gradients."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    def watched(self, tape: Recorder) -> Any:
        sizes, dims = self._sizes(), self.weight.dim() - 2
        if sizes is None or dims > 2 or self.input.dim() != self.weight.dim() or tape.place(self.input) != Place(0):
            return NotImplemented
        weight, bias, x = self.weight, self.bias, self.input.detach()
        function = torch.conv1d if dims == 1 else torch.conv2d
        output = function(self.input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        settings: dict[str, Any] = {name: tuple(size) for name, size in sizes.items()}
        if dims == 1:  # as an image with one row
            settings = {name: (0 if name == "padding" else 1, *size) for name, size in settings.items()}
        settings["groups"] = self.groups

        def contributions(dy: Tensor) -> Parts:
            yield weight, ConvolutionWeight(x.to(dy.dtype), dy, weight.shape, settings)
            if bias is not None:
                yield bias, StoredGradients(position_sums(dy.movedim(1, -1)))

        return tape.watch(output, (weight, bias), contributions)

    def twice(self, derivatives: Derivatives) -> Any:
        sizes = self._sizes()
        if sizes is None or self.input.dim() != self.weight.dim():
            return NotImplemented
        x = channels_last(self.input) if derivatives.use_channels_last else self.input
        return derivatives.of(ConvolutionLayer(sizes, self.groups), x, self.weight, self.bias)

    def _sizes(self) -> dict[str, list[int]] | None:
        """Stride, padding and dilation, one number per dimension; None where the two sides are padded differently."""
        dims = self.weight.dim() - 2

        def sizes(value: Any) -> list[int]:
            values = [value] if isinstance(value, int) else list(value)
            return values * dims if len(values) == 1 else values

        result = {"stride": sizes(self.stride), "padding": [0] * dims, "dilation": sizes(self.dilation)}
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(result["dilation"], self.weight.shape[2:], strict=True)]
            if any(t % 2 for t in total):  # torch then pads the end by one more
                return None
            result["padding"] = [t // 2 for t in total]
        elif self.padding != "valid":
            result["padding"] = sizes(self.padding)
        return result


class ConvolutionLayer(Layer):
    """A convolution with the given sizes."""

    def __init__(self, sizes: dict[str, list[int]], groups: int):
        dims = len(sizes["stride"])
        self.settings = (sizes["stride"], sizes["padding"], sizes["dilation"], False, [0] * dims, groups)

    def value(self, x, weight, bias):
        return torch.ops.aten.convolution(x, weight, bias, *self.settings)

    def gradients(self, dy, x, weight, needed):
        backward = torch.ops.aten.convolution_backward
        return backward(dy, x, weight, [weight.shape[0]], *self.settings, needed)
