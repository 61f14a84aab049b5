"""Recurrent layers; LSTM and GRU through their gates.

With the gates' inputs a_t = W_ih x_t + W_hh h_(t-1) + b, the gradients with respect to a_t are all that the weights'
gradients need: ``dW_ih = sum_t da_t (outer) x_t``, ``dW_hh = sum_t da_t (outer) h_(t-1)``, ``db = sum_t da_t``. The
recurrence is therefore run here, forward and backward, keeping the gates; torch's own functions do not show them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.layers import LinearWeight, Rows
from unlearnx.ops._dtypes import compute_dtype

if TYPE_CHECKING:
    from unlearnx.curvature.tape import Tape


class _LSTM(torch.autograd.Function):
    """The recurrence over time of one layer and direction; gates are (T, N, 4H): input, forget, cell, output."""

    @staticmethod
    def forward(ctx, inputs, h, c, weight, arrived, source):
        steps, n, width = inputs.shape
        size = width // 4
        gates = inputs.clone()
        hidden, cells, squashed = (inputs.new_empty(steps + extra, n, size) for extra in (1, 1, 0))
        hidden[0], cells[0] = h, c
        recurrent = weight.t()
        for t in range(steps):
            g = gates[t].addmm_(hidden[t], recurrent)
            g[:, : 2 * size].sigmoid_()
            g[:, 2 * size : 3 * size].tanh_()
            g[:, 3 * size :].sigmoid_()
            i, f, candidate, o = g.chunk(4, 1)
            torch.addcmul(f * cells[t], i, candidate, out=cells[t + 1])
            torch.tanh(cells[t + 1], out=squashed[t])
            torch.mul(o, squashed[t], out=hidden[t + 1])
        ctx.arrived = arrived
        ctx.save_for_backward(gates, hidden, cells, squashed, weight)
        return hidden[1:].clone(), hidden[-1].clone(), cells[-1].clone()

    @staticmethod
    def backward(ctx, dy, dh, dc):
        gates, hidden, cells, squashed, weight = ctx.saved_tensors
        steps = len(gates)
        da = torch.empty_like(gates)
        dh, dc = dh.clone(memory_format=torch.contiguous_format), dc.clone(memory_format=torch.contiguous_format)
        step = torch.ops.unlearnx.lstm_gates_backward_
        for t in reversed(range(steps)):
            dh += dy[t]
            step(gates[t], cells[t], squashed[t], dh, dc, da[t])
            torch.mm(da[t], weight, out=dh)
        ctx.arrived(da, hidden[:-1])
        return da, dh, dc, None, None, None


class _GRU(torch.autograd.Function):
    """The recurrence over time of one layer and direction; gates are (T, N, 3H): reset, update, new."""

    @staticmethod
    def forward(ctx, inputs, h, weight, bias, arrived, source):
        steps, n, width = inputs.shape
        size = width // 3
        gates = inputs.clone()
        hidden, inner = inputs.new_empty(steps + 1, n, size), inputs.new_empty(steps, n, size)
        hidden[0] = h
        recurrent = weight.t()
        for t in range(steps):
            from_hidden = hidden[t] @ recurrent if bias is None else torch.addmm(bias, hidden[t], recurrent)
            r, z, new = gates[t].chunk(3, 1)
            gates[t][:, : 2 * size].add_(from_hidden[:, : 2 * size]).sigmoid_()
            inner[t] = from_hidden[:, 2 * size :]
            new.addcmul_(r, inner[t]).tanh_()
            torch.lerp(new, hidden[t], z, out=hidden[t + 1])
        ctx.arrived = arrived
        ctx.save_for_backward(gates, hidden, inner, weight)
        return hidden[1:].clone(), hidden[-1].clone()

    @staticmethod
    def backward(ctx, dy, dh):
        gates, hidden, inner, weight = ctx.saved_tensors
        size = hidden.shape[2]
        da, da_hidden = torch.empty_like(gates), torch.empty_like(gates)  # with respect to the two sums of products
        dh = dh.clone()
        for t in reversed(range(len(gates))):
            dh += dy[t]
            r, z, new = gates[t].chunk(3, 1)
            da_r, da_z, da_new = da[t].chunk(3, 1)
            torch.mul(dh * (1 - z), 1 - new.square(), out=da_new)
            torch.mul(da_new * inner[t], r - r.square(), out=da_r)
            torch.mul(dh * (hidden[t] - new), z - z.square(), out=da_z)
            da_hidden[t] = da[t]
            da_hidden[t][:, 2 * size :] *= r
            dh = dh * z + da_hidden[t] @ weight
        ctx.arrived(da, da_hidden, hidden[:-1])
        return da, dh, None, None, None, None


Run = Callable[..., tuple[Tensor, list[Tensor]]]


def _gated(
    cell: type[_LSTM] | type[_GRU],
    tape: Tape,
    x: Tensor,
    state: list[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih=None,
    b_hh=None,
):
    """One layer in one direction over x (T, N, I): (outputs (T, N, H), final states (N, H))."""
    plain = b_ih if b_ih is None or cell is _GRU else b_ih + b_hh  # a GRU's b_hh sits behind its reset gate

    def arrived(da: Tensor, *rest: Tensor):
        da_hidden, hidden = (da, rest[0]) if cell is _LSTM else rest
        by_sample = da.transpose(0, 1).contiguous()  # once for both weights
        yield w_ih, LinearWeight(x.detach().to(da.dtype).transpose(0, 1), by_sample)
        from_hidden = by_sample if da_hidden is da else da_hidden.transpose(0, 1)
        yield w_hh, LinearWeight(hidden.transpose(0, 1), from_hidden)
        if b_ih is not None:
            yield b_ih, Rows(da.sum(0, dtype=compute_dtype(da)))
            yield b_hh, Rows(da_hidden.sum(0, dtype=compute_dtype(da)))

    projected = F.linear(x, w_ih, plain)
    inputs = projected.to(compute_dtype(projected))
    state = [s.to(inputs.dtype) for s in state]
    w_hh_used = w_hh.to(inputs.dtype)
    told = tape.expect((w_ih, w_hh, b_ih, b_hh), arrived)
    extra = () if cell is _LSTM else (None if b_hh is None else b_hh.to(inputs.dtype),)
    outputs, *final = cell.apply(inputs, *state, w_hh_used, *extra, told, tape.source(inputs))
    return outputs.to(projected.dtype), [s.to(projected.dtype) for s in final]


def _simple(
    squash: Callable[[Tensor], Tensor],
    tape: Tape,
    x: Tensor,
    state: list[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih=None,
    b_hh=None,
):
    """The same without gates: every step is one more use of the recurrent weight."""
    (h,), outputs = state, []
    with tape:
        for step in F.linear(x, w_ih, b_ih):
            h = squash(step + F.linear(h, w_hh, b_hh))
            outputs.append(h)
    return torch.stack(outputs), [h]


def _layers(
    tape: Tape,
    run: Run,
    x: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    directions, each = 1 + bidirectional, 4 if biases else 2
    if x.dim() != 3 or len(weights) != layers * directions * each or tape.samples != x.shape[0 if batch_first else 1]:
        return NotImplemented  # LSTMs with projections have one weight more
    x = x.transpose(0, 1).contiguous() if batch_first else x
    finals: list[list[Tensor]] = []
    for layer in range(layers):
        outputs = []
        for d in range(directions):
            k = layer * directions + d
            output, final = run(
                tape, x.flip(0) if d else x, [s[k] for s in states], *weights[k * each : (k + 1) * each]
            )
            outputs.append(output.flip(0) if d else output)
            finals.append(final)
        x = torch.cat(outputs, 2) if bidirectional else outputs[0]
    return x.transpose(0, 1) if batch_first else x, *(torch.stack(f) for f in zip(*finals, strict=True))


def _whole(run: Run, several_states: bool = False) -> Callable[..., Any]:
    """Layers as torch calls them; packed sequences, projections and dropout are not covered."""

    def rule(tape: Tape, x: Tensor, hx: Any, weights: Any, *settings: Any) -> Any:
        if isinstance(weights, Tensor) or isinstance(settings[0], (Tensor, list)):
            return NotImplemented  # (x, batch_sizes, hx, weights, ...): packed
        biases, layers, dropout, train, bidirectional, batch_first = settings
        if train and dropout > 0:
            return NotImplemented
        states = list(hx) if several_states else [hx]
        return _layers(tape, run, x, states, weights, biases, layers, bidirectional, batch_first)

    return rule


lstm = _whole(partial(_gated, _LSTM), several_states=True)
gru = _whole(partial(_gated, _GRU))
rnn_tanh = _whole(partial(_simple, torch.tanh))
rnn_relu = _whole(partial(_simple, torch.relu))


def lstm_cell(tape: Tape, x: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih=None, b_hh=None) -> Any:
    """``torch.lstm_cell`` in terms of linear layers: every step is one more use of the weights."""
    h, c = hx
    with tape:
        a = F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
    i, f, g, o = a.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(tape: Tape, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih=None, b_hh=None) -> Any:
    """``torch.gru_cell`` in terms of linear layers: every step is one more use of the weights."""
    with tape:
        inputs, hidden = F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)
    (r, z, new), (r_h, z_h, new_h) = inputs.chunk(3, -1), hidden.chunk(3, -1)
    r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
    return torch.lerp((new + r * new_h).tanh(), h, z)
