"""Passes over batches that yield what per-sample gradients are made of, whatever the model is made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from unlearnx._copies import lent
from unlearnx._losses import SampleLoss
from unlearnx._memory_order import channels_last, may_reorder
from unlearnx.curvature.contributions import Contribution, Rows
from unlearnx.curvature.tape import Tape
from unlearnx.ops._dtypes import compute_dtype

CHUNK = 16  # samples in one vmap: few enough that their gradients stay in cache
PASS_BYTES = 1 << 26  # outputs of layers that a pass on the CPU keeps: more is slower, for every page is new
PROBED = 3  # an unusual number: it is looked for among the sizes of inputs

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
        x: samples to check the rules on; a few are read.
        dtype: of autocast, or None.

    Raises:
        ValueError: the model does not return one tensor with a row for each sample.
    """

    def __init__(self, model: nn.Module, loss: SampleLoss, names: list[str], x: Tensor, dtype: torch.dtype | None):
        self.model, self.loss, self.names, self.dtype = lent(model), loss, names, dtype
        # Nothing of the model requires gradients: the batch's weight gradients are never computed.
        self.frozen = split_values(model, [name for name, _ in model.named_parameters()])[0]
        self.channels_last = False
        self.axes: dict[frozenset[str], int | None] | None = None
        self.bytes_a_sample = 1
        self.vectorised = True
        self.trusted: set[str] = set()
        self._check_rules(x[:PROBED].detach())

    def split(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch in equal parts whose activations are not larger than needed to keep the cores busy."""
        most = max(1, PASS_BYTES // self.bytes_a_sample) if x.device.type == "cpu" and self.trusted else len(x)
        parts = -(-len(x) // most)
        step = -(-len(x) // parts)
        for start in range(0, len(x), step):
            yield x[start : start + step], y[start : start + step]

    def run(self, x: Tensor, targets: Callable[[Tensor], Iterable[Targets]], take: Take) -> None:
        """One forward pass, and a backward pass for each of ``targets(output)``.

        `take` is called with the name and the contribution of each parameter, and the weights of its samples: all of
        them, or some samples after the others.
        """
        current = Targets(x)

        def take_trusted(name: str, contribution: Contribution) -> None:
            if name in self.trusted:
                take(name, contribution, current.weight)

        x = x.detach()
        tape = Tape({name: self.frozen[name] for name in self.names}, take_trusted, len(x), self.axes)
        output = self._forward(tape, x)
        pending = list(targets(output.detach()))
        for k, current in enumerate(pending):
            with torch.enable_grad():
                objective = current.objective(self.loss, output)
            settled = self._backward(tape, objective, keep=k + 1 < len(pending)) & self.trusted
            rest = [name for name in self.names if name not in settled]
            if rest:
                self._without_rules(rest, x, current, take)

    def _forward(self, tape: Tape, x: Tensor) -> Tensor:
        with torch.enable_grad(), autocast(x, self.dtype):
            if self.axes is not None and not self.trusted:  # nothing to watch
                with torch.no_grad():
                    return self.model(x)
            with tape:
                return functional_call(self.model, self.frozen, (channels_last(x) if self.channels_last else x,))

    def _backward(self, tape: Tape, objective: Tensor, *, keep: bool) -> set[str]:
        if tape.sources and objective.requires_grad:
            torch.autograd.grad(objective, tape.sources, allow_unused=True, retain_graph=keep)
        return tape.finish()

    def _without_rules(self, names: list[str], x: Tensor, targets: Targets, take: Take) -> None:
        values, rest = split_values(self.model, names)

        def objective(values: dict[str, Tensor], x: Tensor, *labels: Tensor) -> Tensor:
            output = functional_call(self.model, (values, rest), (x.unsqueeze(0),))
            return Targets(*(y.unsqueeze(0) for y in labels)).objective(self.loss, output)

        for start in range(0, len(x), CHUNK):
            s = slice(start, start + CHUNK)
            part = targets.part(s)
            labels = (part.y,) if part.minus is None else (part.y, part.minus)
            rows = self._rows(objective, values, x[s], *labels)
            for name, row in rows.items():
                take(name, Rows(row.detach().to(compute_dtype(row))), part.weight)

    def _rows(self, objective: Callable[..., Tensor], values: dict[str, Tensor], *samples: Tensor) -> dict[str, Tensor]:
        """Gradients of ``objective(values, *sample)``, for each of the samples: by vmap where the model lets it."""
        if self.vectorised:
            try:
                with autocast(samples[0], self.dtype):
                    return vmap(grad(objective), in_dims=(None, *[0] * len(samples)))(values, *samples)
            except (RuntimeError, ValueError):  # control flow that depends on data, functions without a batching rule
                self.vectorised = False
        rows = [_gradients(objective, values, *sample, dtype=self.dtype) for sample in zip(*samples, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in values}

    def _check_rules(self, x: Tensor) -> None:
        """Trust the rules where, on a few samples, a random sum of per-sample gradients is what autograd says."""
        leaves = {name: self.frozen[name].clone().requires_grad_() for name in self.names}
        with torch.enable_grad(), autocast(x, self.dtype):
            output = functional_call(self.model, {**self.frozen, **leaves}, (x,))
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(x):
            what = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"model: returned {what} for {len(x)} samples, expected a tensor with a row for each")
        with torch.no_grad(), autocast(x, self.dtype):
            alone = self.model(x[:1])
        low = self.dtype is not None or output.dtype in (torch.bfloat16, torch.float16)
        tolerance = 1e-2 if low else 1e-3
        if alone.shape != output[:1].shape or (alone - output[:1]).norm() > tolerance * alone.norm():
            self.axes = {}  # samples interact: only one at a time are their gradients defined
            return
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        weight = torch.randn(len(x), generator=generator).to(output.device)
        with torch.enable_grad():
            objective = (output * noise * weight.view(-1, *[1] * (output.dim() - 1))).sum()
            gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
        expected = dict(zip(leaves, gradients, strict=True))
        got: dict[str, Tensor] = {}

        def take(name: str, contribution: Contribution) -> None:
            got[name] = contribution.total(weight)

        images = x.dim() == 4 and x.device.type == "cpu" and may_reorder(self.model)
        tape = self._probe(x, noise, take, images=True) if images else None
        tape = tape or self._probe(x, noise, take, images=False)
        if tape is None:
            self.axes = {}
            return
        self.axes = tape.axes
        self.bytes_a_sample = max(1, tape.bytes // len(x))
        for name in tape.finish():
            size = expected[name].norm()
            error = (got[name] - expected[name]).norm() if name in got else size
            # Without gradients on these samples, a guess of which dimension holds the samples is not put to the test.
            if error <= tolerance * size and (size > 0 or name not in tape.ambiguous):
                self.trusted.add(name)

    def _probe(
        self, x: Tensor, noise: Tensor, take: Callable[[str, Contribution], None], *, images: bool
    ) -> Tape | None:
        """The tape of a pass, with images in the order of memory that is fastest if asked for; None if it fails."""
        given = self.frozen
        if images:
            weights = {f"{n}.weight".removeprefix(".") for n, m in self.model.named_modules() if type(m) is nn.Conv2d}
            self.frozen = {name: channels_last(v) if name in weights else v for name, v in given.items()}
        self.channels_last = images
        tape = Tape({name: self.frozen[name] for name in self.names}, take, len(x))
        try:
            with torch.enable_grad():
                objective = (self._forward(tape, x) * noise).sum()
            self._backward(tape, objective, keep=False)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if not images:
                warnings.warn(f"per-sample gradients take longer: watching failed with {error!r}", stacklevel=2)
            self.channels_last, self.frozen = False, given  # a forward may ask for the usual order
            return None
        return tape


def _gradients(
    objective: Callable[..., Tensor], values: dict[str, Tensor], x: Tensor, *rest: Tensor, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Gradients of ``objective(values, x, *rest)`` by an ordinary backward pass."""
    leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
    with torch.enable_grad(), autocast(x, dtype):
        value = objective(leaves, x, *rest)
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True))


def split_values(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached values of the chosen parameters, and of everything else that the model computes with."""
    chosen = set(names)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: everything[name].detach() for name in names}
    return values, {name: t.detach() for name, t in everything.items() if name not in chosen}
