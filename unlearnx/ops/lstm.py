"""LSTM layers that can be differentiated twice.

One layer in one direction is a recurrence over the gates' inputs ``a_t = inputs_t + h_(t-1) W_hh^T``. Its derivatives
are linear recurrences of the same structure: the adjoint (reverse mode) runs backward in time, the tangent (forward
mode) forward in time, and each is the transpose of the other. A second derivative is an adjoint, a tangent, and one
pointwise pass with the second derivatives of the gates, here called curvature. All of them run in fused kernels.
Shapes: T steps, N sequences, H units; states are (T + 1, N, H) and include the initial ones.

In backward passes ``to_x`` is the incoming gradient of an output x, and ``on_x`` the resulting gradient of an input x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from unlearnx.ops._call import call_past_autograd, register_fake
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._not_differentiable import not_differentiable
from unlearnx.ops._recording import Recording
from unlearnx.ops._stack import Stack

__all__ = ["lstm"]

States = Sequence[Tensor]


def lstm(
    input: Tensor,
    hx: States | None,
    weights: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A stack of LSTM layers as ``torch.lstm`` runs it for ``torch.nn.LSTM``, but differentiable twice.

    It supports reverse mode twice, forward over reverse and reverse over forward mode, and ``torch.func`` transforms,
    on CPU and CUDA; under ``torch.compile``, reverse mode once. (cuDNN's LSTM has no second derivative, oneDNN's no
    forward mode.)

    Args:
        input: (T, N, I), or (N, T, I) with ``batch_first``; T >= 1.
        hx: initial states (h, c), each (layers * directions, N, H); None for zeros.
        weights: of every layer and direction ``weight_ih`` (4H, I), ``weight_hh`` (4H, H) and, with ``has_biases``,
            ``bias_ih`` and ``bias_hh`` (4H,); gates in the order input, forget, cell, output.
        has_biases: whether ``weights`` holds biases.
        num_layers: layers of the stack.
        dropout: probability of dropping an output between layers; used if ``train``.
        train: whether ``dropout`` is applied.
        bidirectional: whether every layer runs in both directions; outputs are then 2H wide.
        batch_first: whether ``input`` and the outputs are (N, T, ...).

    Returns:
        Outputs of the last layer (T, N, directions * H), or (N, T, ...) with ``batch_first``; the final h and the
        final c, each (layers * directions, N, H). In the dtype of ``input``; the recurrence is computed in float32
        or better, from products with ``weight_ih`` that torch computes and rounds to the dtype.

    Raises:
        TypeError: a tensor is not float32, float64, bfloat16 or float16, or the dtypes differ.
        ValueError: shapes do not match, or the weights are those of an LSTM with projections (``proj_size``), which are
            not supported.

    Source: Hochreiter and Schmidhuber, Neural Computation 1997, with the forget gate of Gers et al., 2000; products
    with second derivatives as Pearlmutter, Neural Computation 1994.

    Example:
        >>> layer, x = nn.LSTM(4, 8), torch.randn(5, 2, 4)
        >>> output, h, c = lstm(x, None, layer._flat_weights)
        >>> torch.allclose(output, layer(x)[0], atol=1e-6)
        True
        >>> (gradient,) = torch.autograd.grad(output.sum(), layer.weight_hh_l0, create_graph=True)
        >>> torch.autograd.grad(gradient.square().sum(), layer.weight_hh_l0)[0].shape
        torch.Size([32, 8])
    """
    settings = has_biases, num_layers, dropout, train, bidirectional, batch_first
    tensors = (input, *(() if hx is None else hx), *weights)
    if has_torch_function(tensors):  # curvature engines replace the function by a faster rule
        return handle_torch_function(lstm, tensors, input, hx, weights, *settings)
    output, h, c = LSTMStack(weights, *settings).run(input, hx)
    return output, h, c


def packed_lstm(
    data: Tensor,
    batch_sizes: Tensor,
    hx: States | None,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`lstm` for the ``data`` and ``batch_sizes`` of a PackedSequence, like ``torch.lstm`` for packed data."""
    settings = has_biases, num_layers, dropout, train, bidirectional
    tensors = (data, *(() if hx is None else hx), *weights)
    if has_torch_function(tensors):
        return handle_torch_function(packed_lstm, tensors, data, batch_sizes, hx, weights, *settings)
    output, h, c = LSTMStack(weights, *settings).run_packed(data, batch_sizes, hx)
    return output, h, c


def plain_recurrence(inputs: Tensor, h: Tensor | None, c: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell states (T + 1, N, H) of one layer and direction.

    ``inputs`` (T, N, 4H) are ``W_ih x_t`` plus biases. Their gradients equal those of the gates' inputs a_t.
    """
    if torch.compiler.is_compiling():  # it cannot trace a Function with a jvp, so it uses the formula registered below
        return torch.ops.unlearnx.lstm_forward(inputs, h, c, weight)[:2]
    return _Recurrence.apply(inputs, h, c, weight, None)[:2]


def recorded_recurrence(recording: Recording) -> Callable[..., tuple[Tensor, Tensor]]:
    """As :func:`plain_recurrence` for a curvature engine, which sets the flags in `recording`."""
    return lambda *arguments: _Recurrence.apply(*arguments, recording)[:2]


class LSTMStack(Stack):
    """A stack of LSTM layers.

    Attributes:
        project: computes the product with ``weight_ih``; called like ``F.linear``, and may be replaced.
        recurrence: called like :func:`plain_recurrence`, and may be replaced.
    """

    kind, gates, states = "lstm", 4, 2
    project: Callable[..., Tensor] = staticmethod(F.linear)
    recurrence: Callable[..., tuple[Tensor, Tensor]] = staticmethod(plain_recurrence)

    def _direction(self, x, first, weights):
        w_ih, w_hh, *biases = weights
        projected = self.project(x, w_ih, biases[0] + biases[1] if biases else None)
        dtype = compute_dtype(projected)
        h, c = (None if s is None else s.to(dtype) for s in first)
        return self.recurrence(projected.to(dtype), h, c, w_hh.to(dtype))


class _Recurrence(torch.autograd.Function):
    """(hidden, cells, gates) from ``inputs`` (T, N, 4H), initial states (N, H) or None, and the weight (4H, H)."""

    @staticmethod
    def forward(inputs, h, c, weight, recording):
        return call_past_autograd(torch.ops.unlearnx.lstm_forward, inputs, h, c, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *_, weight, ctx.recording = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *output)
        ctx.save_for_forward(weight, *output)

    @staticmethod
    def backward(ctx, to_hidden, to_cells, to_gates):
        weight, hidden, cells, gates = ctx.saved_tensors
        initial = any(ctx.needs_input_grad[1:3])
        da, dh, dc, *_ = _Adjoint.apply(to_hidden, to_cells, to_gates, cells, gates, weight, initial, ctx.recording)
        d_weight = None
        if ctx.needs_input_grad[3]:
            if ctx.recording is not None and ctx.recording.recording and torch.is_grad_enabled():
                d_weight = _RecordedWeightGradient.apply(da, hidden, ctx.recording)
            else:
                d_weight = _weight_gradient(da, hidden)
        return da, dh if ctx.needs_input_grad[1] else None, dc if ctx.needs_input_grad[2] else None, d_weight, None

    @staticmethod
    def jvp(ctx, inputs_t, h_t, c_t, weight_t, _):
        weight, hidden, cells, gates = ctx.saved_tensors
        source = _sum(inputs_t, None if weight_t is None else hidden[:-1] @ weight_t.mT)
        source = torch.zeros_like(gates) if source is None else source
        return _Tangent.apply(source, h_t, c_t, cells, gates, weight)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _vmap_over_sequences(_Recurrence.apply, info.batch_size, in_dims, args, (1, 0, 0, None, None), (1, 1, 1))


class _Adjoint(torch.autograd.Function):
    """Gradients (da, dh, dc) of the gates' inputs and of the initial states, from those of states and gates (or None).

    Linear in the latter, the transpose of :class:`_Tangent`. The last two results are the gradients of all states.
    """

    @staticmethod
    def forward(to_hidden, to_cells, to_gates, cells, gates, weight, initial, recording):
        if recording is not None and recording.recording and not recording.values and torch.is_grad_enabled():
            nothing = gates.new_zeros(())
            return (nothing.expand_as(gates), *(nothing.expand_as(t) for t in (cells[0], cells[0], cells, cells)))
        da, dh, dc = call_past_autograd(
            torch.ops.unlearnx.lstm_backward, to_hidden, to_cells, to_gates, cells, gates, weight, initial
        )
        return da, dh[0].clone(), dc[0].clone(), dh, dc

    @staticmethod
    def setup_context(ctx, inputs, output):
        *_, cells, gates, weight, ctx.initial, ctx.recording = inputs
        da, _, _, dh, dc = output
        ctx.mark_non_differentiable(dh, dc)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cells, gates, weight, da, dh, dc)
        ctx.save_for_forward(cells, gates, weight, da, dh, dc)

    @staticmethod
    def backward(ctx, on_da, on_dh, on_dc, *_):
        cells, gates, weight, da, dh, dc = ctx.saved_tensors
        on_da = torch.zeros_like(gates) if on_da is None else on_da
        hidden_t, cells_t, gates_t = _Tangent.apply(on_da, on_dh, on_dc, cells, gates, weight)
        tangents = hidden_t, cells_t, gates_t
        sources = [t if need else None for t, need in zip(tangents, ctx.needs_input_grad[:3], strict=True)]
        if ctx.recording is not None and ctx.recording.tangents:
            return *sources, *(None,) * 5
        on_cells, on_gates = _Curvature.apply(cells, gates, cells_t, gates_t, dh, dc)
        on_weight = _weight_gradient(da, hidden_t) if ctx.needs_input_grad[5] else None
        return *sources, on_cells, on_gates, on_weight, None, None

    @staticmethod
    def jvp(ctx, to_hidden_t, to_cells_t, to_gates_t, cells_t, gates_t, weight_t, *_):
        cells, gates, weight, da, dh, dc = ctx.saved_tensors
        if cells_t is not None or gates_t is not None:
            zero_or = lambda t, like: torch.zeros_like(like) if t is None else t  # noqa: E731
            moved = _Curvature.apply(cells, gates, zero_or(cells_t, cells), zero_or(gates_t, gates), dh, dc)
            to_cells_t, to_gates_t = _sum(to_cells_t, moved[0]), _sum(to_gates_t, moved[1])
        if weight_t is not None:
            to_hidden_t = _sum(to_hidden_t, F.pad(da @ weight_t, (0, 0, 0, 0, 0, 1)))
        results = _Adjoint.apply(to_hidden_t, to_cells_t, to_gates_t, cells, gates, weight, ctx.initial, None)
        return *results[:3], None, None

    @staticmethod
    def vmap(info, in_dims, *args):
        sequence_dims = (1, 1, 1, 1, 1, None, None, None)
        return _vmap_over_sequences(_Adjoint.apply, info.batch_size, in_dims, args, sequence_dims, (1, 0, 0, 1, 1))


class _Tangent(torch.autograd.Function):
    """Tangents of (hidden, cells, gates), from those of inputs (T, N, 4H) and initial states (or None)."""

    @staticmethod
    def forward(inputs, h, c, cells, gates, weight):
        return call_past_autograd(torch.ops.unlearnx.lstm_tangent, inputs, h, c, cells, gates, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[3:], *output)

    @staticmethod
    def backward(ctx, to_hidden, to_cells, to_gates):
        cells, gates, weight, hidden_t, cells_t, gates_t = ctx.saved_tensors
        initial = any(ctx.needs_input_grad[1:3])
        da, dh0, dc0, dh, dc = _Adjoint.apply(to_hidden, to_cells, to_gates, cells, gates, weight, initial, None)
        on_cells, on_gates = _Curvature.apply(cells, gates, cells_t, gates_t, dh, dc)
        firsts = [t if need else None for t, need in zip((dh0, dc0), ctx.needs_input_grad[1:3], strict=True)]
        return da, *firsts, on_cells, on_gates, _weight_gradient(da, hidden_t)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _vmap_over_sequences(_Tangent.apply, info.batch_size, in_dims, args, (1, 0, 0, 1, 1, None), (1, 1, 1))


class _Curvature(torch.autograd.Function):
    """The pointwise second derivatives of every step; they cannot be differentiated further."""

    @staticmethod
    def forward(cells, gates, cells_t, gates_t, dh, dc):
        return call_past_autograd(torch.ops.unlearnx.lstm_curvature, cells, gates, cells_t, gates_t, dh, dc)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError("lstm: third derivatives are not supported")

    @staticmethod
    def vmap(info, in_dims, *args):
        return _vmap_over_sequences(_Curvature.apply, info.batch_size, in_dims, args, (1,) * 6, (1, 1))


class _RecordedWeightGradient(torch.autograd.Function):
    """The weight's gradient without its value: the weight is a leaf, so only derivatives of its gradient are used."""

    @staticmethod
    def forward(ctx, da, hidden, recording):
        ctx.save_for_backward(da, hidden)
        ctx.recording = recording
        return da.new_zeros(()).expand(da.shape[2], hidden.shape[2])

    @staticmethod
    def backward(ctx, v):
        da, hidden = ctx.saved_tensors
        on_da = hidden[:-1] @ v.mT
        if ctx.recording.tangents:
            return on_da, None, None
        on_hidden = torch.empty_like(hidden)
        torch.matmul(da, v, out=on_hidden[:-1])
        on_hidden[-1] = 0
        return on_da, on_hidden, None


def _weight_gradient(da: Tensor, hidden: Tensor) -> Tensor:
    """The recurrent weight's gradient (4H, H), the sum over steps of ``da_t (outer) h_(t-1)``."""
    return da.flatten(0, 1).mT @ hidden[:-1].flatten(0, 1)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _vmap_over_sequences(
    call: Callable[..., Any],
    batch: int,
    in_dims: Sequence[int | None],
    args: Sequence[Any],
    sequence_dims: Sequence[int | None],
    out_dims: Sequence[int],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A vmapped call as one call with ``batch`` times as many sequences.

    Where the weights are batched, which have no dimension of sequences, the calls are made one after the other.

    Args:
        in_dims: the vmapped dimension of each argument, or None.
        sequence_dims: the dimension of the sequences of each argument, None for the weights and settings.
        out_dims: the dimension of the sequences of each result.
    """
    if any(dim is not None and axis is None for dim, axis in zip(in_dims, sequence_dims, strict=True)):
        single = [
            call(*(t if dim is None else t.select(dim, i) for t, dim in zip(args, in_dims, strict=True)))
            for i in range(batch)
        ]
        return tuple(torch.stack(parts) for parts in zip(*single, strict=True)), (0,) * len(out_dims)

    def folded(t: Any, dim: int | None, axis: int | None) -> Any:
        if axis is None or t is None:
            return t
        moved = (
            t.unsqueeze(axis).expand(*t.shape[:axis], batch, *t.shape[axis:]) if dim is None else t.movedim(dim, axis)
        )
        return moved.flatten(axis, axis + 1)

    results = call(*map(folded, args, in_dims, sequence_dims))
    return tuple(t.unflatten(axis, (batch, -1)) for t, axis in zip(results, out_dims, strict=True)), tuple(out_dims)


@register_fake("lstm_forward")
def _(inputs, h, c, weight):
    steps, n, width = inputs.shape
    states = inputs.new_empty(steps + 1, n, width // 4)
    return states, torch.empty_like(states), inputs.new_empty(inputs.shape)


@register_fake("lstm_backward")
def _(to_hidden, to_cells, to_gates, cells, gates, weight, initial):
    return gates.new_empty(gates.shape), cells.new_empty(cells.shape), cells.new_empty(cells.shape)


@register_fake("lstm_tangent")
def _(inputs, h, c, cells, gates, weight):
    return cells.new_empty(cells.shape), cells.new_empty(cells.shape), gates.new_empty(gates.shape)


@register_fake("lstm_curvature")
def _(cells, gates, cells_tangent, gates_tangent, to_hidden, to_cells):
    return cells.new_empty(cells.shape), gates.new_empty(gates.shape)


def _setup_compiled(ctx, inputs, output):
    ctx.save_for_backward(inputs[3], *output)


def _backward_compiled(ctx, to_hidden, to_cells, to_gates):
    weight, hidden, cells, gates = ctx.saved_tensors
    da, dh, dc = torch.ops.unlearnx.lstm_backward(to_hidden, to_cells, to_gates, cells, gates, weight, True)
    firsts = [t[0].clone() if need else None for t, need in zip((dh, dc), ctx.needs_input_grad[1:3], strict=True)]
    return da, *firsts, _weight_gradient(da, hidden)


not_differentiable("lstm_backward", "lstm_tangent", "lstm_curvature")
torch.library.register_autograd("unlearnx::lstm_forward", _backward_compiled, setup_context=_setup_compiled)

_library = torch.library.Library("unlearnx", "FRAGMENT")
_library.define(
    "lstm(Tensor input, Tensor[]? hx, Tensor[] weights, bool has_biases=True, int num_layers=1, float dropout=0., "
    "bool train=False, bool bidirectional=False, bool batch_first=False) -> (Tensor, Tensor, Tensor)"
)
_library.impl("lstm", lstm, "CompositeImplicitAutograd")
