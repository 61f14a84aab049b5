"""Passes over batches that yield what per-sample gradients are made of, whatever the model is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from unlearnx._data import channels_last
from unlearnx._losses import SampleLoss
from unlearnx.curvature.layers import Contribution, Rows
from unlearnx.curvature.tape import Tape

CHUNK = 16  # samples in one vmap: few enough that their gradients stay in cache
PASS_BYTES = 1 << 26  # outputs of layers that a pass on the CPU keeps: more is slower, for every page is new
PROBED = 2

Take = Callable[[str, Contribution, "Tensor | None"], None]


@dataclass
class Targets:
    """What to differentiate: the losses at labels y, less those at `minus`; the samples may have weights."""

    y: Tensor
    minus: Tensor | None = None
    weight: Tensor | None = None

    def objective(self, loss: SampleLoss, output: Tensor) -> Tensor:
        """Sum over the samples, not weighted: it is their gradients that are."""
        total = loss.total(output, self.y)
        return total if self.minus is None else total - loss.total(output, self.minus)

    def part(self, s: slice) -> Targets:
        """Those of some samples."""
        minus, weight = (None if t is None else t[s] for t in (self.minus, self.weight))
        return Targets(self.y[s], minus, weight)


def autocast(x: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on the device of `x`; does nothing for None, nor on a CPU without units for that dtype."""
    device = x.device.type
    if device == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        dtype = None
    return torch.autocast(device, dtype, enabled=dtype is not None)


class SampleGradients:
    """Per-sample gradients of a model's losses: known functions by their rules, the rest by vmap(grad).

    Args:
        model: in a state in which samples do not interact.
        loss: per-sample losses.
        names: the parameters.
        x, y: samples to check the rules on; two are read.
        dtype: of autocast, or None.
    """

    def __init__(
        self, model: nn.Module, loss: SampleLoss, names: list[str], x: Tensor, y: Tensor, dtype: torch.dtype | None
    ):
        self.model, self.loss, self.names, self.dtype = model, loss, names, dtype
        # Nothing of the model requires gradients: the batch's weight gradients are never computed.
        everything = [name for name, _ in model.named_parameters()]
        self.frozen = {name: channels_last(v) for name, v in split_values(model, everything)[0].items()}
        self.axes: list[int] | None = None
        self.bytes_a_sample = 1
        self.trusted = set(names)
        self._keep_agreeing(x[:PROBED], y[:PROBED])

    def split(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch in parts whose activations are not larger than needed to keep the cores busy."""
        step = max(1, PASS_BYTES // self.bytes_a_sample) if x.device.type == "cpu" and self.trusted else len(x)
        for start in range(0, len(x), step):
            yield x[start : start + step], y[start : start + step]

    def run(self, x: Tensor, targets: Callable[[Tensor], Iterable[Targets]], take: Take) -> None:
        """One forward pass, and a backward pass for each of ``targets(output)``.

        `take` is called with the name and the contribution of each parameter, and the weights of its samples: all of
        them, or some samples after the others.
        """
        current: Targets
        tape = self._tape(len(x), lambda name, contribution: take(name, contribution, current.weight))
        output = self._forward(tape, x)
        pending = list(targets(output.detach()))
        for k, current in enumerate(pending):
            settled = self._backward(tape, output, current, keep=k + 1 < len(pending))
            rest = [name for name in self.names if name not in settled]
            if rest:
                self._one_by_one(rest, x, current, take)

    def _tape(self, samples: int, take: Callable[[str, Contribution], None]) -> Tape:
        watched = {name: self.frozen[name] for name in self.names if name in self.trusted}
        return Tape(watched, take, samples, self.axes)

    def _forward(self, tape: Tape, x: Tensor) -> Tensor:
        with torch.enable_grad(), autocast(x, self.dtype), tape:
            return functional_call(self.model, self.frozen, (channels_last(x),))

    def _backward(self, tape: Tape, output: Tensor, targets: Targets, *, keep: bool) -> set[str]:
        with torch.enable_grad():
            objective = targets.objective(self.loss, output)
            if tape.sources and objective.requires_grad:
                torch.autograd.grad(objective, tape.sources, allow_unused=True, retain_graph=keep)
        return tape.finish()

    def _one_by_one(self, names: list[str], x: Tensor, targets: Targets, take: Take) -> None:
        values, rest = split_values(self.model, names)

        def objective(values: dict[str, Tensor], x: Tensor, *labels: Tensor) -> Tensor:
            output = functional_call(self.model, (values, rest), (x.unsqueeze(0),))
            return Targets(*(y.unsqueeze(0) for y in labels)).objective(self.loss, output)

        for start in range(0, len(x), CHUNK):
            s = slice(start, start + CHUNK)
            part = targets.part(s)
            labels = (part.y,) if part.minus is None else (part.y, part.minus)
            with autocast(x, self.dtype):
                rows = vmap(grad(objective), in_dims=(None, *[0] * (1 + len(labels))))(values, x[s], *labels)
            for name, row in rows.items():
                take(name, Rows(row.detach()), part.weight)

    def _keep_agreeing(self, x: Tensor, y: Tensor) -> None:
        """Trust the rules for parameters whose squares they get right on the first samples."""
        expected = {name: torch.zeros_like(v) for name, v in self.frozen.items() if name in self.trusted}
        values, rest = split_values(self.model, self.names)
        for i in range(len(x)):
            leaves = {name: v.requires_grad_() for name, v in values.items()}
            with torch.enable_grad(), autocast(x, self.dtype):
                output = functional_call(self.model, (leaves, rest), (x[i : i + 1],))
                objective = self.loss.total(output, y[i : i + 1])
                gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                expected[name] += gradient.square()
        while True:
            got = {name: torch.zeros_like(expected[name]) for name in self.trusted}

            def take(name: str, contribution: Contribution, got: dict[str, Tensor] = got) -> None:
                got[name] += contribution.squares(None)

            tape = self._tape(len(x), take)
            try:
                settled = self._backward(tape, self._forward(tape, x), Targets(y), keep=False)
            except (RuntimeError, ValueError, IndexError, TypeError):  # a forward that does unusual things
                settled = set()
            tolerance = 1e-2 if self.dtype else 1e-3
            agreeing = {n for n in settled if (got[n] - expected[n]).norm() <= tolerance * expected[n].norm()}
            if agreeing == self.trusted:
                break
            self.trusted = agreeing  # what is watched decides on the order of calls: look again
        self.axes = tape.axes
        self.bytes_a_sample = max(1, tape.bytes // len(x))


def split_values(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached values of the chosen parameters, and of everything else that the model computes with."""
    chosen = set(names)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: everything[name].detach() for name in names}
    return values, {name: t.detach() for name, t in everything.items() if name not in chosen}
