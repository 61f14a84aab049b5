"""Rules for recurrent layers: the tape watches the inputs of their gates.

The gates' inputs are a_t = W_ih x_t + W_hh h_(t-1) + b. Their gradients da_t give the weights' gradients:
``dW_ih = sum_t da_t (outer) x_t``, ``dW_hh = sum_t da_t (outer) h_(t-1)``, ``db = sum_t da_t``. LSTM and GRU run
our own recurrences, because torch's functions do not return the gates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.contributions import LinearWeight, StoredGradients
from unlearnx.curvature.layers import Derivatives, can_replace, inside_checkpoint
from unlearnx.curvature.places import Place
from unlearnx.curvature.rules.linear import LinearLayer, linear_of
from unlearnx.curvature.rules.registry import Recorder, Rule, rule_of
from unlearnx.nn.gru import GRUStack
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._stack import Call, Stack
from unlearnx.ops.lstm import LSTMStack, lstm, packed_lstm, plain_recurrence, recorded_recurrence


class _GRU(torch.autograd.Function):
    """All states (T + 1, N, H) of one layer and direction; gates are (T, N, 3H): reset, update, new."""

    @staticmethod
    def forward(ctx, inputs, h, weight, bias, on_gradient, source):
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
        ctx.on_gradient = on_gradient
        ctx.save_for_backward(gates, hidden, inner, weight)
        return hidden.clone()

    @staticmethod
    def backward(ctx, dy):
        gates, hidden, inner, weight = ctx.saved_tensors
        size = hidden.shape[2]
        da, da_hidden = (
            torch.empty_like(gates),
            torch.empty_like(gates),
        )  # gradients of the input's and of the state's products
        dh = torch.zeros_like(dy[0])
        for t in reversed(range(len(gates))):
            dh += dy[t + 1]
            r, z, new = gates[t].chunk(3, 1)
            da_r, da_z, da_new = da[t].chunk(3, 1)
            torch.mul(dh * (1 - z), 1 - new.square(), out=da_new)
            torch.mul(da_new * inner[t], r - r.square(), out=da_r)
            torch.mul(dh * (hidden[t] - new), z - z.square(), out=da_z)
            da_hidden[t] = da[t]
            da_hidden[t][:, 2 * size :] *= r
            dh = dh * z + da_hidden[t] @ weight
        ctx.on_gradient(da, da_hidden, hidden[:-1])
        return da, dh + dy[0], None, None, None, None


class _WatchedLSTM(LSTMStack):
    """The tape watches the projected input: its gradients are those of the gates' inputs."""

    tape: Recorder

    def _direction(self, x, first, weights):
        w_ih, w_hh, b_ih, b_hh = self.named(weights)
        projected = F.linear(x, w_ih, None if b_ih is None or b_hh is None else b_ih + b_hh)
        dtype = compute_dtype(projected)
        h, c = (None if s is None else s.to(dtype) for s in first)
        states: list[Tensor] = []

        def contributions(da: Tensor):
            by_sample = da.transpose(0, 1).contiguous()  # copied once, for both weights
            yield w_ih, LinearWeight(x.detach().to(da.dtype).transpose(0, 1), by_sample)
            yield w_hh, LinearWeight(states[0][:-1].transpose(0, 1), by_sample)
            if b_ih is not None:
                yield from ((b, StoredGradients(da.sum(0, dtype=compute_dtype(da)))) for b in (b_ih, b_hh))

        watched = self.tape.watch(projected.to(dtype), (w_ih, w_hh, b_ih, b_hh), contributions)
        hidden, cells = plain_recurrence(watched, h, c, w_hh.to(dtype))
        states.append(hidden.detach())
        return hidden, cells


class _WatchedGRU(GRUStack):
    """The recurrence is run by :class:`_GRU`, which passes on the gradients of both terms of the gates' inputs."""

    tape: Recorder

    def _direction(self, x, first, weights):
        w_ih, w_hh, b_ih, b_hh = self.named(weights)
        projected = F.linear(x, w_ih, b_ih)
        inputs = projected.to(compute_dtype(projected))
        h, weight = first[0].to(inputs.dtype), w_hh.to(inputs.dtype)
        bias = None if b_hh is None else b_hh.to(inputs.dtype)

        def contributions(da: Tensor, da_hidden: Tensor, hidden: Tensor):
            yield w_ih, LinearWeight(x.detach().to(da.dtype).transpose(0, 1), da.transpose(0, 1).contiguous())
            yield w_hh, LinearWeight(hidden.transpose(0, 1), da_hidden.transpose(0, 1))
            if b_ih is not None:
                yield b_ih, StoredGradients(da.sum(0, dtype=compute_dtype(da)))
                yield b_hh, StoredGradients(da_hidden.sum(0, dtype=compute_dtype(da)))

        on_gradient = self.tape.expect((w_ih, w_hh, b_ih, b_hh), contributions)
        return [_GRU.apply(inputs, h, weight, bias, on_gradient, self.tape.source(inputs))]


class _WatchedRNN(Stack):
    """Layers without gates, as linear layers: every step is one more use of the recurrent weight."""

    kind, gates, states = "rnn", 1, 1
    tape: Recorder
    activation: Callable[[Tensor], Tensor]

    def _direction(self, x, first, weights):
        w_ih, w_hh, b_ih, b_hh = self.named(weights)
        states = [first[0]]
        for step in linear_of(self.tape, x, 1, w_ih, b_ih):
            states.append(self.activation(step + linear_of(self.tape, states[-1], 0, w_hh, b_hh)))
        return [torch.stack(states)]


class _WatchedTanh(_WatchedRNN):
    activation = staticmethod(torch.tanh)


class _WatchedReLU(_WatchedRNN):
    activation = staticmethod(torch.relu)


class _Recurrent(Rule):
    """A stack of recurrent layers as torch calls it: for padded sequences, or for a PackedSequence.

    Attributes:
        watched_stack: runs the layers and tells the tape, without packed sequences, projections and dropout.
        twice_stack: runs the layers in a form that can be differentiated twice; None where torch's own can be.
    """

    watched_stack: type[_WatchedLSTM] | type[_WatchedGRU] | type[_WatchedRNN]
    twice_stack: type[LSTMStack] | type[GRUStack] | None = None

    def __init__(self, *args: Any):
        self.call = Call.of(args)

    def watched(self, tape: Recorder) -> Any:
        call = self.call
        if call.packed or call.projects:
            return NotImplemented
        (x,), (_, _, dropout, train, _, batch_first) = call.data, call.settings
        if (train and dropout > 0) or x.dim() != 3 or tape.samples != x.shape[0 if batch_first else 1]:
            return NotImplemented
        stack = self.watched_stack(call.weights, *call.settings)
        stack.tape = tape
        return call.run(stack)

    def twice(self, derivatives: Derivatives) -> Any:
        call, kind = self.call, self.twice_stack
        if kind is None or not torch.is_grad_enabled() or inside_checkpoint() or call.projects:
            return NotImplemented
        _log_replacement(kind.kind)
        stack = kind(call.weights, *call.settings)
        if can_replace(call.data[0], *call.weights):
            stack.project = partial(derivatives.apply, LinearLayer())
            if isinstance(stack, LSTMStack):
                stack.recurrence = recorded_recurrence(derivatives.flags)
        return call.run(stack)


@cache  # once per kind of layer
def _log_replacement(kind: str) -> None:
    logging.getLogger("unlearnx").info(
        "the %s layers of the model run as those of unlearnx.nn, which can be differentiated twice", kind
    )


@rule_of(torch._VF.lstm, lstm, packed_lstm)
class LSTM(_Recurrent):
    """``nn.LSTM`` and ``unlearnx.nn.LSTM``."""

    watched_stack, twice_stack = _WatchedLSTM, LSTMStack


@rule_of(torch._VF.gru)
class GRU(_Recurrent):
    """``nn.GRU``."""

    watched_stack, twice_stack = _WatchedGRU, GRUStack


@rule_of(torch._VF.rnn_tanh)
class TanhRNN(_Recurrent):
    """``nn.RNN``."""

    watched_stack = _WatchedTanh


@rule_of(torch._VF.rnn_relu)
class ReLURNN(_Recurrent):
    """``nn.RNN`` with ``nonlinearity="relu"``."""

    watched_stack = _WatchedReLU


@dataclass
class _Cell(Rule):
    x: Tensor
    state: Any
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None


@rule_of(torch._VF.lstm_cell)
class LSTMCell(_Cell):
    """``torch.lstm_cell`` in terms of linear layers: every step is one more use of the weights."""

    def watched(self, tape: Recorder) -> Any:
        if tape.place(self.x) != Place(0):
            return NotImplemented
        h, c = self.state
        a = linear_of(tape, self.x, 0, self.w_ih, self.b_ih) + linear_of(tape, h, 0, self.w_hh, self.b_hh)
        i, f, g, o = a.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@rule_of(torch._VF.gru_cell)
class GRUCell(_Cell):
    """``torch.gru_cell`` in terms of linear layers: every step is one more use of the weights."""

    def watched(self, tape: Recorder) -> Any:
        if tape.place(self.x) != Place(0):
            return NotImplemented
        inputs = linear_of(tape, self.x, 0, self.w_ih, self.b_ih)
        hidden = linear_of(tape, self.state, 0, self.w_hh, self.b_hh)
        (r, z, new), (r_h, z_h, new_h) = inputs.chunk(3, -1), hidden.chunk(3, -1)
        r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
        return torch.lerp((new + r * new_h).tanh(), self.state, z)
