"""Layers whose gradients are cheap to differentiate again.

Where autograd differentiates a layer ``y = B(x, w) + b`` twice, it computes the layer's weight gradient, which no
product with the curvature needs, and torch's double backward functions are slow. The functions here compute each
product of the layer (``B`` with two of its arguments) at most once, by the fastest function for it, and only if its
value is used. A forward and backward pass is 3 such products. A Hessian-vector product takes 8 per layer (2.67 passes),
or 6 (2.0) on a graph that is kept; a Gauss-Newton product takes 5 (1.67) or 4 (1.33).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearnx.curvature.linearised import Linearised, apply_linearised, zeros
from unlearnx.ops._recording import Recording


@dataclass
class Derivatives:
    """Puts layers into an autograd graph in the form that is cheap to differentiate twice.

    Args:
        flags: which derivatives are needed; read during the backward passes.
        use_channels_last: give convolutions their input in channels-last memory order, the fastest on the CPU.
        linear: only the model's linearisation is asked for, as by Gauss-Newton products.
    """

    flags: Recording
    use_channels_last: bool = False
    linear: bool = False

    def of(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """The layer's output; NotImplemented where torch's own function has to run."""
        return self.apply(layer, x, weight, bias) if can_replace(x, weight, bias) else NotImplemented

    def apply(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same without looking at the arguments."""
        return _Forward.apply(x, weight, bias, layer, self.flags)

    def linearised(self, function: Linearised, *xs: Tensor | None) -> Any:
        """The function's output; NotImplemented where torch's own function has to run."""
        if not can_differentiate(*(x for x in xs if x is not None)):
            return NotImplemented
        return apply_linearised(function, self.flags, *xs)

    def of_parameter(self, function: Linearised, parameter: Tensor) -> Any:
        """The output of a function that is linear in a parameter, its only input; NotImplemented as above."""
        if not parameter.is_leaf or not parameter.requires_grad or not can_differentiate(parameter):
            return NotImplemented
        return apply_linearised(function, self.flags, parameter)


class Layer:
    """``y = B(x, weight) + bias`` with B linear in each argument (for batch norm, in x minus the mean)."""

    def value(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def tangent(self, dx: Tensor, weight: Tensor, other: Tensor | None = None) -> Tensor:
        """The change of y for the change dx of x, plus `other`, which may be overwritten."""
        y = self.value(dx, weight, None)
        return y if other is None else y.add_(other)

    def input_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
        """Gradient with respect to x."""
        return self.gradients(dy, x, weight, (True, False, False))[0]

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
        """Gradient with respect to the weight."""
        return self.gradients(dy, x, weight, (False, True, False))[1]

    def weight_gradient_tangent(self, dy: Tensor, dx: Tensor, weight: Tensor) -> Tensor | None:
        """The change of the weight's gradient for the change dx of x."""
        return self.weight_gradient(dy, dx, weight)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]
    ) -> Sequence[Tensor | None]:
        """Gradients with respect to x, weight and bias; None for those that are not `needed`."""
        raise NotImplementedError


class _Forward(torch.autograd.Function):
    """The layer as one node of the graph; a backward pass that is recorded is one node too (:class:`_Backward`)."""

    @staticmethod
    def forward(ctx, x, weight, bias, layer, flags):
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.flags = layer, flags
        ctx.shapes = weight.shape, None if bias is None else bias.shape
        return layer.value(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradients = _Backward.apply(dy, x, weight, ctx.shapes, ctx.needs_input_grad[:3], ctx.layer, ctx.flags)
        else:
            gradients = ctx.layer.gradients(dy, x, weight, ctx.needs_input_grad[:3])
        return *gradients, None, None


class _Backward(torch.autograd.Function):
    """The backward pass of the layer, as a node that can be differentiated."""

    @staticmethod
    def forward(ctx, dy, x, weight, shapes, needed, layer, flags):
        ctx.save_for_backward(dy if flags.values else None, x, weight)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.flags = layer, flags
        if not flags.recording:
            return tuple(layer.gradients(dy, x, weight, needed))
        dx = None
        if needed[0]:
            dx = layer.input_gradient(dy, x, weight) if flags.values else zeros(dy, x.shape)
        # Parameters are leaves, so that the values of their gradients are not used: only the graph behind them is.
        return dx, *(zeros(dy, shape) if need else None for need, shape in zip(needed[1:], shapes, strict=True))

    @staticmethod
    def backward(ctx, to_dx, to_dweight, to_dbias):
        dy, x, weight = ctx.saved_tensors
        layer = ctx.layer
        to_dy = None
        if to_dweight is not None or to_dbias is not None:
            to_dy = layer.value(x, torch.zeros_like(weight) if to_dweight is None else to_dweight, to_dbias)
        if to_dx is not None:
            to_dy = layer.tangent(to_dx, weight, to_dy)
        to_x = to_weight = None
        if not ctx.flags.tangents:
            if to_dweight is not None and ctx.needs_input_grad[1]:
                to_x = layer.input_gradient(dy, x, to_dweight)
            if to_dx is not None and ctx.needs_input_grad[2]:
                to_weight = layer.weight_gradient_tangent(dy, to_dx, weight)
        return to_dy, to_x, to_weight, None, None, None, None


def can_replace(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether a layer can run as ours: a parameter requires gradients, and nothing needs torch's own functions."""
    parameters = [t for t in (weight, *others) if t is not None]
    return (
        all(t.is_leaf for t in parameters)
        and any(t.requires_grad for t in parameters)
        and can_differentiate(x, *parameters)
    )


def can_differentiate(*xs: Tensor) -> bool:
    """Whether a function of tensors of one dtype can run as ours: no autocast, checkpoint or functorch transform, which
    need torch's own functions, is active."""
    return (
        torch.is_grad_enabled()
        and all(t.dtype == xs[0].dtype and t.is_floating_point() for t in xs)
        and not torch.is_autocast_enabled(xs[0].device.type)
        and not inside_checkpoint()
        and not torch._C._are_functorch_transforms_active()  # they need more methods than our functions have
    )


def inside_checkpoint() -> bool:
    """Whether activation checkpointing is active: its second forward pass runs outside of this mode."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
