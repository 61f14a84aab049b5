"""Layers whose gradients are cheap to differentiate again.

Where autograd differentiates a layer ``y = B(x, w) + b`` twice, it computes the layer's weight gradient, which no
product with the curvature needs, and torch's double backward functions are slow. The functions here compute each
product of the layer (``B`` with two of its arguments) at most once, by the fastest function for it, and only if its
value is used. A forward and backward pass is 3 such products. A Hessian-vector product takes 8 per layer (2.67 passes),
or 6 (2.0) on a graph that is kept; a Gauss-Newton product takes 5 (1.67) or 4 (1.33).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from unlearnx._memory_order import channels_last
from unlearnx.curvature.rules import convolution_sizes
from unlearnx.nn.gru import GRUStack
from unlearnx.ops._recording import Recording
from unlearnx.ops._stack import Call
from unlearnx.ops.lstm import LSTMStack, lstm, packed_lstm, recorded_recurrence
from unlearnx.ops.scale_shift_grad import scale_shift_grad_diff


class TwiceDifferentiable(TorchFunctionMode):
    """Runs layers in a form that is cheap to differentiate twice: linear, convolution, frozen batch norm, LSTM, GRU.

    It replaces layers whose weights are leaves of the autograd graph. Other layers run torch's own functions, except
    LSTM and GRU, which always run ours, because cuDNN's have no second derivatives.

    Args:
        flags: which derivatives are needed; read during the backward passes.
        use_channels_last: give convolutions their input in channels-last memory order, the fastest on the CPU.
    """

    def __init__(self, flags: Recording, *, use_channels_last: bool):
        super().__init__()
        self.flags, self.use_channels_last = flags, use_channels_last

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is not None:
            result = rule(self, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


class _Layer:
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


class _Linear(_Layer):
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


class _Convolution(_Layer):
    def __init__(self, sizes: dict[str, list[int]], groups: int):
        dims = len(sizes["stride"])
        self.settings = (sizes["stride"], sizes["padding"], sizes["dilation"], False, [0] * dims, groups)

    def value(self, x, weight, bias):
        return torch.ops.aten.convolution(x, weight, bias, *self.settings)

    def gradients(self, dy, x, weight, needed):
        backward = torch.ops.aten.convolution_backward
        return backward(dy, x, weight, [weight.shape[0]], *self.settings, needed)


class _FrozenBatchNorm(_Layer):
    def __init__(self, mean: Tensor, var: Tensor, eps: float):
        self.mean, self.rstd = mean, (var + eps).rsqrt()

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
        ctx.save_for_backward(dy, x, weight)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.flags = layer, flags
        if not flags.recording:
            return tuple(layer.gradients(dy, x, weight, needed))
        dx = None
        if needed[0]:
            dx = layer.input_gradient(dy, x, weight) if flags.values else _zeros(dy, x.shape)
        # Parameters are leaves, so that the values of their gradients are not used: only the graph behind them is.
        return dx, *(_zeros(dy, shape) if need else None for need, shape in zip(needed[1:], shapes, strict=True))

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


def _zeros(like: Tensor, shape: torch.Size) -> Tensor:
    """Zeros that take no memory, in place of a value that is not used."""
    return like.new_zeros(()).expand(shape)


def _can_replace(x: Tensor, weight: Tensor | None, *others: Tensor | None) -> bool:
    """Whether this layer can run as :class:`_Forward`: a parameter requires gradients, and no autocast, checkpoint or
    functorch transform, which need torch's own functions, is active."""
    parameters = [t for t in (weight, *others) if t is not None]
    return (
        torch.is_grad_enabled()
        and weight is not None
        and all(t.is_leaf for t in parameters)
        and any(t.requires_grad for t in parameters)
        and all(t.dtype == x.dtype and t.is_floating_point() for t in (x, *parameters))
        and not torch.is_autocast_enabled(x.device.type)
        and not _inside_checkpoint()
        and not torch._C._are_functorch_transforms_active()  # they need more methods than _Forward has
    )


def _inside_checkpoint() -> bool:
    """Whether activation checkpointing is active: its second forward pass runs outside of this mode."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _linear(mode: TwiceDifferentiable, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if input.dim() < 2 or weight.dim() != 2 or not _can_replace(input, weight, bias):
        return NotImplemented
    return _Forward.apply(input, weight, bias, _Linear(), mode.flags)


def _convolution(
    mode: TwiceDifferentiable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    sizes = convolution_sizes(weight, stride, padding, dilation)
    if sizes is None or input.dim() != weight.dim() or not _can_replace(input, weight, bias):
        return NotImplemented
    x = channels_last(input) if mode.use_channels_last else input
    return _Forward.apply(x, weight, bias, _Convolution(sizes, groups), mode.flags)


def _batch_norm(
    mode: TwiceDifferentiable,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None or not _can_replace(input, weight, bias):
        return NotImplemented
    if running_mean.dtype != input.dtype:
        return NotImplemented
    return _Forward.apply(input, weight, bias, _FrozenBatchNorm(running_mean, running_var, eps), mode.flags)


def _recurrent(kind: type[LSTMStack] | type[GRUStack]) -> Callable[..., Any]:
    """The rule for torch's functions that run a stack of recurrent layers, on padded or packed sequences."""

    def rule(mode: TwiceDifferentiable, *args: Any) -> Any:
        if not torch.is_grad_enabled() or _inside_checkpoint():
            return NotImplemented
        call = Call.of(args)
        if call.projects:
            return NotImplemented
        _log_replacement(kind.kind)
        stack = kind(call.weights, *call.settings)
        if _can_replace(call.data[0], *call.weights):
            stack.project = lambda x, weight, bias: _Forward.apply(x, weight, bias, _Linear(), mode.flags)
            if isinstance(stack, LSTMStack):
                stack.recurrence = recorded_recurrence(mode.flags)
        return call.run(stack)

    return rule


@cache  # once per kind of layer
def _log_replacement(kind: str) -> None:
    logging.getLogger("unlearnx").info(
        "the %s layers of the model run as those of unlearnx.nn, which can be differentiated twice", kind
    )


_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    F.batch_norm: _batch_norm,
    torch._VF.lstm: _recurrent(LSTMStack),
    lstm: _recurrent(LSTMStack),
    packed_lstm: _recurrent(LSTMStack),
    torch._VF.gru: _recurrent(GRUStack),
}
