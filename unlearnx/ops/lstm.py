"""LSTM layers that can be differentiated twice.

One layer in one direction is a recurrence over pre-activations ``a_t = inputs_t + h_(t-1) W_hh^T``. Its derivatives
take two more linear recurrences of the same structure: adjoints run backward, tangents forward, each the transpose of
the other; second derivatives are these two around one pointwise pass, the curvature. All step through fused kernels.
Steps T, rows N and units H; states are (T + 1, N, H), the first ones included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._recording import Recording

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

    On CPU and CUDA: by reverse mode twice, by forward over reverse and reverse over forward mode, under ``torch.func``
    transforms, and once under ``torch.compile``. (cuDNN's LSTM has no second derivative, oneDNN's no tangents.)

    Args:
        input: (T, N, I), or (N, T, I) with ``batch_first``; T >= 1.
        hx: first states (h, c), each (layers * directions, N, H); None for zeros.
        weights: of every layer and direction ``weight_ih`` (4H, I), ``weight_hh`` (4H, H) and, with ``has_biases``,
            ``bias_ih`` and ``bias_hh`` (4H,); gates in the order input, forget, cell, output.
        has_biases: whether ``weights`` holds biases.
        num_layers: layers of the stack.
        dropout: probability of dropping an output between layers, where ``train``.
        train: whether ``dropout`` is applied.
        bidirectional: whether every layer runs in both directions; outputs are then 2H wide.
        batch_first: the order of ``input`` and of the outputs.

    Returns:
        Outputs of the last layer (T, N, directions * H), or (N, T, ...) with ``batch_first``; the final h and the
        final c, each (layers * directions, N, H). In the dtype of ``input``; the recurrence is held in float32 or
        better.

    Raises:
        TypeError: a tensor is not float32, float64, bfloat16 or float16, or the dtypes differ.
        ValueError: shapes do not belong together, or the weights are those of an LSTM with projections
            (``proj_size``), which is not covered.

    Source: Hochreiter and Schmidhuber, Neural Computation 1997, with the forget gate of Gers et al., 2000; products
    with second derivatives as Pearlmutter, Neural Computation 1994.
    """
    stack = Stack(weights, has_biases, num_layers, bidirectional, dropout if train else 0.0)
    x = input.transpose(0, 1) if batch_first and input.dim() == 3 else input
    output, h, c = stack.run(x, hx)
    return output.transpose(0, 1) if batch_first else output, h, c


def packed_lstm(
    input: PackedSequence, hx: States | None, stack: Stack, recording: Recording | None = None
) -> tuple[PackedSequence, Tensor, Tensor]:
    """The same over sequences of several lengths; rows of `hx` and of the final states in the order of the packing."""
    plain = PackedSequence(input.data, input.batch_sizes)
    x, lengths = pad_packed_sequence(plain)
    output, h, c = stack.run(x, hx, lengths=lengths.to(x.device), recording=recording)
    packed = pack_padded_sequence(output, lengths)
    return PackedSequence(packed.data, input.batch_sizes, input.sorted_indices, input.unsorted_indices), h, c


class Stack:
    """The weights of a stack of layers, checked, and how they are run; arguments as for :func:`lstm`."""

    def __init__(
        self, weights: Sequence[Tensor], has_biases: bool, num_layers: int, bidirectional: bool, dropout: float
    ):
        self.layers, self.directions, self.dropout = num_layers, 1 + bidirectional, dropout
        self.each = 4 if has_biases else 2
        self.weights = list(weights)
        self._check()

    def run(
        self,
        x: Tensor,
        hx: States | None,
        *,
        lengths: Tensor | None = None,
        recording: Recording | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs and final states for x (T, N, I); of rows with `lengths` (N,), the outputs behind have no meaning."""
        self._check_input(x, hx)
        finals: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.layers):
            x = F.dropout(x, self.dropout) if layer and self.dropout else x
            outputs = []
            for d in range(self.directions):
                k = layer * self.directions + d
                first = (None, None) if hx is None else (hx[0][k], hx[1][k])
                hidden, cells = self._recurrence(k, _backwards(x, lengths) if d else x, first, recording)
                outputs.append(_backwards(hidden[1:], lengths) if d else hidden[1:])
                finals.append((_last(hidden, lengths), _last(cells, lengths)))
            x = torch.cat(outputs, 2) if self.directions == 2 else outputs[0]
        h, c = (torch.stack(states) for states in zip(*finals, strict=True))
        return x, h, c

    def _recurrence(self, k: int, x: Tensor, first: Sequence[Tensor | None], recording: Recording | None) -> States:
        """Hidden and cell states of one layer and direction."""
        w_ih, w_hh, *biases = self.weights[k * self.each : (k + 1) * self.each]
        projected = F.linear(x, w_ih, biases[0] + biases[1] if biases else None)
        dtype = compute_dtype(projected)
        h, c = (None if s is None else s.to(dtype) for s in first)
        arguments = projected.to(dtype), h, c, w_hh.to(dtype)
        if torch.compiler.is_compiling():  # which traces no Function with a jvp; the formula registered below serves
            hidden, cells, _ = torch.ops.unlearnx.lstm_forward(*arguments)
        else:
            hidden, cells, _ = _Recurrence.apply(*arguments, recording)
        return hidden.to(x.dtype), cells.to(x.dtype)

    def _check(self) -> None:
        expected = self.layers * self.directions * self.each
        if len(self.weights) == expected // self.each * (self.each + 1):
            raise ValueError("lstm: weights has those of an LSTM with projections (proj_size), which is not covered")
        if len(self.weights) != expected:
            raise ValueError(f"lstm: weights has {len(self.weights)} tensors, expected {expected}")
        units = self.weights[1].shape[-1]
        for k in range(expected):
            t, place = self.weights[k], k % self.each
            width = units * self.directions if k >= self.directions * self.each else self.weights[0].shape[-1]
            shape = [(4 * units, width), (4 * units, units), (4 * units,), (4 * units,)][place]
            if t.shape != shape:
                raise ValueError(f"lstm: weights[{k}] has shape {list(t.shape)}, expected {list(shape)}")

    def _check_input(self, x: Tensor, hx: States | None) -> None:
        width, units = self.weights[0].shape[1], self.weights[1].shape[1]
        if x.dim() != 3 or x.shape[2] != width or len(x) == 0:
            raise ValueError(
                f"lstm: input has shape {list(x.shape)} (steps first), expected (T, N, {width}) of at least one step"
            )
        if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise TypeError(f"lstm: input has dtype {x.dtype}, expected float32, float64, bfloat16 or float16")
        states = (self.layers * self.directions, x.shape[1], units)
        if hx is not None and (len(hx) != 2 or any(s.shape != states for s in hx)):
            raise ValueError(f"lstm: hx has shapes {[list(s.shape) for s in hx]}, expected two of {list(states)}")
        for k, t in enumerate(self.weights):
            if t.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise TypeError(f"lstm: weights[{k}] has dtype {t.dtype}, but input has {x.dtype}")
            if t.device != x.device:
                raise ValueError(f"lstm: weights[{k}] is on {t.device}, but input is on {x.device}")


def _backwards(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Steps in opposite order, each row within its length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, order[..., None].expand_as(x))


def _last(states: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return states[-1]
    return states.gather(0, lengths[None, :, None].expand(1, *states.shape[1:]))[0]


class _Recurrence(torch.autograd.Function):
    """(hidden, cells, gates) of ``inputs`` (T, N, 4H), first states (N, H) or None, and the weight (4H, H)."""

    @staticmethod
    def forward(inputs, h, c, weight, recording):
        return torch.ops.unlearnx.lstm_forward(inputs, h, c, weight)

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
                d_weight = _outer(da, hidden)
        return da, dh if ctx.needs_input_grad[1] else None, dc if ctx.needs_input_grad[2] else None, d_weight, None

    @staticmethod
    def jvp(ctx, inputs_t, h_t, c_t, weight_t, _):
        weight, hidden, cells, gates = ctx.saved_tensors
        source = _sum(inputs_t, None if weight_t is None else hidden[:-1] @ weight_t.mT)
        source = torch.zeros_like(gates) if source is None else source
        return _Tangent.apply(source, h_t, c_t, cells, gates, weight)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _by_rows(_Recurrence.apply, info.batch_size, in_dims, args, (1, 0, 0, None, None), (1, 1, 1))


class _Adjoint(torch.autograd.Function):
    """What reaches pre-activations and first states, (da, dh, dc), for what is sent to states and gates (or None).

    Linear in those, the transpose of :class:`_Tangent`. The last two results are what reaches all states.
    """

    @staticmethod
    def forward(to_hidden, to_cells, to_gates, cells, gates, weight, initial, recording):
        if recording is not None and recording.recording and not recording.values and torch.is_grad_enabled():
            nothing = gates.new_zeros(())
            return (nothing.expand_as(gates), *(nothing.expand_as(t) for t in (cells[0], cells[0], cells, cells)))
        da, dh, dc = torch.ops.unlearnx.lstm_backward(to_hidden, to_cells, to_gates, cells, gates, weight, initial)
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
        if ctx.recording is not None and ctx.recording.tangents:
            return hidden_t, cells_t, gates_t, *(None,) * 5
        on_cells, on_gates = _Curvature.apply(cells, gates, cells_t, gates_t, dh, dc)
        on_weight = _outer(da, hidden_t) if ctx.needs_input_grad[5] else None
        needed = [t if need else None for t, need in zip((hidden_t, cells_t, gates_t), ctx.needs_input_grad, strict=False)]
        return *needed, on_cells, on_gates, on_weight, None, None

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
        rows = (1, 1, 1, 1, 1, None, None, None)
        return _by_rows(_Adjoint.apply, info.batch_size, in_dims, args, rows, (1, 0, 0, 1, 1))


class _Tangent(torch.autograd.Function):
    """Tangents of (hidden, cells, gates) for those of the inputs (T, N, 4H) and of the first states or None."""

    @staticmethod
    def forward(inputs, h, c, cells, gates, weight):
        return torch.ops.unlearnx.lstm_tangent(inputs, h, c, cells, gates, weight)

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
        return da, *firsts, on_cells, on_gates, _outer(da, hidden_t)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _by_rows(_Tangent.apply, info.batch_size, in_dims, args, (1, 0, 0, 1, 1, None), (1, 1, 1))


class _Curvature(torch.autograd.Function):
    """Second derivatives of the cells, step by step; they themselves are not differentiated."""

    @staticmethod
    def forward(cells, gates, cells_t, gates_t, dh, dc):
        return torch.ops.unlearnx.lstm_curvature(cells, gates, cells_t, gates_t, dh, dc)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise NotImplementedError("lstm: third derivatives are not covered")

    @staticmethod
    def vmap(info, in_dims, *args):
        return _by_rows(_Curvature.apply, info.batch_size, in_dims, args, (1,) * 6, (1, 1))


class _RecordedWeightGradient(torch.autograd.Function):
    """The weight's gradient without its value: parameters are leaves, only derivatives of it are asked for."""

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


def _outer(da: Tensor, hidden: Tensor) -> Tensor:
    """The recurrent weight's gradient (4H, H), the sum over steps of ``da_t (outer) h_(t-1)``."""
    return da.flatten(0, 1).mT @ hidden[:-1].flatten(0, 1)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _by_rows(
    call: Callable[..., Any],
    batch: int,
    in_dims: Sequence[int | None],
    args: Sequence[Any],
    rows: Sequence[int | None],
    out_rows: Sequence[int],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A batched call as one with more rows; the dimension of the rows is `rows` for arguments, `out_rows` for results.

    One after the other where arguments without rows, the weights, are batched.
    """
    if any(dim is not None and row is None for dim, row in zip(in_dims, rows, strict=True)):
        single = [
            call(*(t if dim is None else t.select(dim, i) for t, dim in zip(args, in_dims, strict=True)))
            for i in range(batch)
        ]
        return tuple(torch.stack(parts) for parts in zip(*single, strict=True)), (0,) * len(out_rows)

    def folded(t: Any, dim: int | None, row: int | None) -> Any:
        if row is None or t is None:
            return t
        moved = t.unsqueeze(row).expand(*t.shape[:row], batch, *t.shape[row:]) if dim is None else t.movedim(dim, row)
        return moved.flatten(row, row + 1)

    results = call(*map(folded, args, in_dims, rows))
    return tuple(t.unflatten(row, (batch, -1)) for t, row in zip(results, out_rows, strict=True)), tuple(out_rows)


@torch.library.register_fake("unlearnx::lstm_forward")
def _(inputs, h, c, weight):
    steps, n, width = inputs.shape
    states = inputs.new_empty(steps + 1, n, width // 4)
    return states, torch.empty_like(states), inputs.new_empty(inputs.shape)


@torch.library.register_fake("unlearnx::lstm_backward")
def _(to_hidden, to_cells, to_gates, cells, gates, weight, initial):
    return gates.new_empty(gates.shape), cells.new_empty(cells.shape), cells.new_empty(cells.shape)


@torch.library.register_fake("unlearnx::lstm_tangent")
def _(inputs, h, c, cells, gates, weight):
    return cells.new_empty(cells.shape), cells.new_empty(cells.shape), gates.new_empty(gates.shape)


@torch.library.register_fake("unlearnx::lstm_curvature")
def _(cells, gates, cells_tangent, gates_tangent, to_hidden, to_cells):
    return cells.new_empty(cells.shape), gates.new_empty(gates.shape)


def _setup_compiled(ctx, inputs, output):
    ctx.save_for_backward(inputs[3], *output)


def _backward_compiled(ctx, to_hidden, to_cells, to_gates):
    weight, hidden, cells, gates = ctx.saved_tensors
    da, dh, dc = torch.ops.unlearnx.lstm_backward(to_hidden, to_cells, to_gates, cells, gates, weight, True)
    firsts = [t[0].clone() if need else None for t, need in zip((dh, dc), ctx.needs_input_grad[1:3], strict=True)]
    return da, *firsts, _outer(da, hidden)


torch.library.register_autograd("unlearnx::lstm_forward", _backward_compiled, setup_context=_setup_compiled)

_library = torch.library.Library("unlearnx", "FRAGMENT")
_library.define(
    "lstm(Tensor input, Tensor[]? hx, Tensor[] weights, bool has_biases=True, int num_layers=1, float dropout=0., "
    "bool train=False, bool bidirectional=False, bool batch_first=False) -> (Tensor, Tensor, Tensor)"
)
_library.impl("lstm", lstm, "CompositeImplicitAutograd")
