"""Stacks of recurrent layers: one or two directions, sequences of equal or of different length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

SUPPORTED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Call(NamedTuple):
    """The arguments of a torch function that runs recurrent layers, such as ``torch.lstm``.

    Attributes:
        data: (input,), or (data, batch_sizes) of a PackedSequence.
        hx: initial states, None for zeros.
        weights: weights of all layers.
        settings: the arguments after the weights.
    """

    data: tuple[Tensor, ...]
    hx: Sequence[Tensor] | None
    weights: Sequence[Tensor]
    settings: Sequence[Any]

    @classmethod
    def of(cls, args: Sequence[Any]) -> Call:
        """From positional arguments, of either overload: for padded input or for a PackedSequence."""
        packed = isinstance(args[3], (tuple, list))
        data, (hx, weights, *settings) = args[: 1 + packed], args[1 + packed :]
        return cls(tuple(data), [hx] if isinstance(hx, Tensor) else hx, weights, settings)

    @property
    def packed(self) -> bool:
        """Whether the data come from a PackedSequence."""
        return len(self.data) == 2

    @property
    def projects(self) -> bool:
        """Whether the layers have projections, which add one weight to each layer and direction."""
        return len(self.weights) % (4 if self.settings[0] else 2) != 0

    def run(self, stack: Stack) -> tuple[Tensor, ...]:
        """Outputs and final states of `stack` for the data."""
        run: Callable[..., tuple[Tensor, ...]] = stack.run_packed if self.packed else stack.run
        return run(*self.data, self.hx)


class Stack:
    """Runs a stack of recurrent layers; subclasses define one layer in one direction.

    Args:
        weights: of every layer and direction ``weight_ih`` (gates * H, I), ``weight_hh`` (gates * H, H) and, with
            ``has_biases``, ``bias_ih`` and ``bias_hh`` (gates * H,).
        has_biases, num_layers, dropout, train, bidirectional, batch_first: as in ``torch.lstm``.

    Attributes:
        kind: name of the layers in error messages.
        gates: number of gates.
        states: number of tensors of state: 2 for LSTM (h, c), else 1.

    Raises:
        ValueError: number or shapes of the weights do not fit the other arguments.
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
        self.weights_each = 4 if has_biases else 2  # weights per layer and direction
        self.weights = list(weights)
        self._check()

    def _direction(self, x: Tensor, first: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """All states of one layer in one direction, (T + 1, N, H) each, the outputs first.

        Args:
            x: inputs (T, N, I), contiguous.
            first: initial states, (N, H); None for zeros.
            weights: the layer's weights for this direction.
        """
        raise NotImplementedError

    @staticmethod
    def named(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """``weight_ih, weight_hh, bias_ih, bias_hh`` of one layer and direction; None for missing biases."""
        w_ih, w_hh, *biases = weights
        b_ih, b_hh = biases or (None, None)
        return w_ih, w_hh, b_ih, b_hh

    def run(self, input: Tensor, hx: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """Outputs (T, N, directions * H), or (N, T, ...) with ``batch_first``, and the final states."""
        transposed = self.batch_first and input.dim() == 3
        output, *final = self._run(input.transpose(0, 1) if transposed else input, hx, None)
        return output.transpose(0, 1) if transposed else output, *final

    def run_packed(self, data: Tensor, batch_sizes: Tensor, hx: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """As :meth:`run` for a PackedSequence: packed outputs, and each sequence's state after its own last step."""
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        output, *final = self._run(x, hx, lengths.to(x.device))
        return pack_padded_sequence(output, lengths).data, *final

    def _run(self, x: Tensor, hx: Sequence[Tensor] | None, lengths: Tensor | None) -> tuple[Tensor, ...]:
        """As :meth:`run` for x (T, N, I); outputs after a sequence's end, see `lengths` (N,), have no meaning."""
        self._check_input(x, hx)
        dtype, finals = x.dtype, []
        for layer in range(self.layers):
            x = F.dropout(x, self.dropout) if layer and self.dropout else x
            outputs = []
            for d in range(self.directions):
                k = layer * self.directions + d
                first = [None] * self.states if hx is None else [s[k] for s in hx]
                weights = self.weights[k * self.weights_each : (k + 1) * self.weights_each]
                steps_in = _reversed_steps(x, lengths) if d else x.contiguous()
                states = self._direction(steps_in, first, weights)
                output = states[0][1:].to(dtype)
                outputs.append(_reversed_steps(output, lengths) if d else output)
                finals.append([_last_states(s, lengths).to(dtype) for s in states])
            x = torch.cat(outputs, 2) if self.directions == 2 else outputs[0]
        return x, *(torch.stack(final) for final in zip(*finals, strict=True))

    def _check(self) -> None:
        directions = self.layers * self.directions
        if len(self.weights) == directions * (self.weights_each + 1):
            raise ValueError(
                f"{self.kind}: weights has a projection for every layer (proj_size), which is not supported"
            )
        if len(self.weights) != directions * self.weights_each:
            raise ValueError(
                f"{self.kind}: weights has {len(self.weights)} tensors, expected {directions * self.weights_each}"
            )
        width, units = self.weights[0].shape[-1], self.weights[1].shape[-1]
        rows = self.gates * units
        for k, t in enumerate(self.weights):
            inputs = width if k < self.directions * self.weights_each else units * self.directions
            shape = [(rows, inputs), (rows, units), (rows,), (rows,)][k % self.weights_each]
            if t.shape != shape:
                raise ValueError(f"{self.kind}: weights[{k}] has shape {list(t.shape)}, expected {list(shape)}")

    def _check_input(self, x: Tensor, hx: Sequence[Tensor] | None) -> None:
        width, units = self.weights[0].shape[1], self.weights[1].shape[1]
        if x.dim() != 3 or x.shape[2] != width or len(x) == 0:
            raise ValueError(
                f"{self.kind}: input has shape {list(x.shape)}, expected (T, N, {width}) of at least one step"
            )
        if x.dtype not in SUPPORTED_DTYPES:
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


def _reversed_steps(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The steps in reverse order, each sequence within its own length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, order[..., None].expand_as(x))


def _last_states(states: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence's state after its own last step."""
    if lengths is None:
        return states[-1]
    return states.gather(0, lengths[None, :, None].expand(1, *states.shape[1:]))[0]
