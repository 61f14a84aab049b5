"""Recurrent layers on top of each other, in one direction or both, over rows of one length or of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Call(NamedTuple):
    """The arguments of a function of torch that runs recurrent layers, such as ``torch.lstm``.

    Attributes:
        data: (input,), or (data, batch_sizes) of a PackedSequence.
        hx: first states, None for zeros.
        weights: of all layers.
        settings: what follows them.
    """

    data: tuple[Tensor, ...]
    hx: Sequence[Tensor] | None
    weights: Sequence[Tensor]
    settings: Sequence[Any]

    @classmethod
    def of(cls, args: Sequence[Any]) -> Call:
        """From the arguments of either form, in which the list of weights has another place."""
        packed = isinstance(args[3], (tuple, list))
        data, (hx, weights, *settings) = args[: 1 + packed], args[1 + packed :]
        return cls(tuple(data), [hx] if isinstance(hx, Tensor) else hx, weights, settings)

    @property
    def packed(self) -> bool:
        """Whether the data are those of a PackedSequence."""
        return len(self.data) == 2

    @property
    def projects(self) -> bool:
        """Whether the layers have projections: one weight more each."""
        return len(self.weights) % (4 if self.settings[0] else 2) != 0

    def run(self, stack: Stack) -> tuple[Tensor, ...]:
        """What `stack` makes of the data."""
        run: Callable[..., tuple[Tensor, ...]] = stack.run_packed if self.packed else stack.run
        return run(*self.data, self.hx)


class Stack:
    """The weights of a stack, checked, and how they are run. A kind of layer says how one direction is.

    Args:
        weights: of every layer and direction ``weight_ih`` (gates * H, I), ``weight_hh`` (gates * H, H) and, with
            ``has_biases``, ``bias_ih`` and ``bias_hh`` (gates * H,).
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as the functions of torch.

    Raises:
        ValueError: the weights are not those of such a stack.
    """

    kind: str
    gates: int
    states: int

    def __init__(
        self,
        weights: Sequence[Tensor],
        has_biases: bool = True,
        num_layers: int = 1,
        dropout: float = 0.0,
        train: bool = False,
        bidirectional: bool = False,
        batch_first: bool = False,
    ):
        self.layers, self.directions, self.batch_first = num_layers, 1 + bidirectional, batch_first
        self.dropout = dropout if train else 0.0
        self.each = 4 if has_biases else 2
        self.weights = list(weights)
        self._check()

    def _direction(self, x: Tensor, first: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """All states (T + 1, N, H) of one layer and direction for x (T, N, I): the outputs, then any others.

        Args:
            x: contiguous.
            first: states to start from, (N, H); None for zeros.
            weights: those of the layer and direction.
        """
        raise NotImplementedError

    @staticmethod
    def named(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The weights of one layer and direction; biases are None where there are none."""
        w_ih, w_hh, *biases = weights
        b_ih, b_hh = biases or (None, None)
        return w_ih, w_hh, b_ih, b_hh

    def run(self, input: Tensor, hx: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Outputs (T, N, directions * H), or (N, T, ...) with ``batch_first``, and final states."""
        turned = self.batch_first and input.dim() == 3
        output, *final = self._run(input.transpose(0, 1) if turned else input, hx, None)
        return output.transpose(0, 1) if turned else output, *final

    def run_packed(self, data: Tensor, batch_sizes: Tensor, hx: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """The same for a PackedSequence: outputs packed as the data, and the states after each row's own last step."""
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        output, *final = self._run(x, hx, lengths.to(x.device))
        return pack_padded_sequence(output, lengths).data, *final

    def _run(self, x: Tensor, hx: Sequence[Tensor] | None, lengths: Tensor | None) -> tuple[Tensor, ...]:
        """For x (T, N, I); of rows with `lengths` (N,), the outputs behind have no meaning."""
        self._check_input(x, hx)
        dtype, finals = x.dtype, []
        for layer in range(self.layers):
            x = F.dropout(x, self.dropout) if layer and self.dropout else x
            outputs = []
            for d in range(self.directions):
                k = layer * self.directions + d
                first = [None] * self.states if hx is None else [s[k] for s in hx]
                weights = self.weights[k * self.each : (k + 1) * self.each]
                along = _backwards(x, lengths) if d else x.contiguous()
                states = self._direction(along, first, weights)
                output = states[0][1:].to(dtype)
                outputs.append(_backwards(output, lengths) if d else output)
                finals.append([_last(s, lengths).to(dtype) for s in states])
            x = torch.cat(outputs, 2) if self.directions == 2 else outputs[0]
        return x, *(torch.stack(final) for final in zip(*finals, strict=True))

    def _check(self) -> None:
        sets = self.layers * self.directions
        if len(self.weights) == sets * (self.each + 1):
            raise ValueError(f"{self.kind}: weights has those of layers with projections (proj_size), not covered")
        if len(self.weights) != sets * self.each:
            raise ValueError(f"{self.kind}: weights has {len(self.weights)} tensors, expected {sets * self.each}")
        width, units = self.weights[0].shape[-1], self.weights[1].shape[-1]
        rows = self.gates * units
        for k, t in enumerate(self.weights):
            inputs = width if k < self.directions * self.each else units * self.directions
            shape = [(rows, inputs), (rows, units), (rows,), (rows,)][k % self.each]
            if t.shape != shape:
                raise ValueError(f"{self.kind}: weights[{k}] has shape {list(t.shape)}, expected {list(shape)}")

    def _check_input(self, x: Tensor, hx: Sequence[Tensor] | None) -> None:
        width, units = self.weights[0].shape[1], self.weights[1].shape[1]
        if x.dim() != 3 or x.shape[2] != width or len(x) == 0:
            raise ValueError(
                f"{self.kind}: input has shape {list(x.shape)}, expected (T, N, {width}) of at least one step"
            )
        if x.dtype not in FLOATS:
            raise TypeError(f"{self.kind}: input has dtype {x.dtype}, expected float32, float64, bfloat16 or float16")
        shape = (self.layers * self.directions, x.shape[1], units)
        if hx is not None and (len(hx) != self.states or any(s.shape != shape for s in hx)):
            raise ValueError(
                f"{self.kind}: hx has shapes {[list(s.shape) for s in hx]}, expected {self.states} of {list(shape)}"
            )
        for k, t in enumerate(self.weights):
            if t.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise TypeError(f"{self.kind}: weights[{k}] has dtype {t.dtype}, but input has {x.dtype}")
            if t.device != x.device:
                raise ValueError(f"{self.kind}: weights[{k}] is on {t.device}, but input is on {x.device}")


def _backwards(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Steps in opposite order, each row within its length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, order[..., None].expand_as(x))


def _last(states: Tensor, lengths: Tensor | None) -> Tensor:
    """The state after the last step of every row."""
    if lengths is None:
        return states[-1]
    return states.gather(0, lengths[None, :, None].expand(1, *states.shape[1:]))[0]
