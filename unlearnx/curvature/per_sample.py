"""Forward and backward passes over batches that yield per-sample gradients, as contributions, of any model.

:class:`SampleGradients` runs the model with a :class:`~unlearnx.curvature.tape.Tape`, which hands each parameter's
:class:`~unlearnx.curvature.contributions.Contribution` to a callback. Parameters that the tape cannot follow go
through ``torch.func.vmap(grad)``; their contributions are the stored gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from unlearnx._batches import Nest, Rebuild, arguments, call, changed, count, rows, split_rows, take
from unlearnx._checks import model_device
from unlearnx._copies import lent
from unlearnx._losses import SampleLoss
from unlearnx._memory_order import ImageOrder, channels_last
from unlearnx._precision import exact_products
from unlearnx.curvature.contributions import Contribution, StoredGradients
from unlearnx.curvature.tape import Tape
from unlearnx.ops._dtypes import compute_dtype

VMAP_SAMPLES = 16  # samples in one vmap: few enough that their gradients stay in the CPU's caches
KEPT_ACTIVATION_BYTES = 1 << 26  # layer outputs that one pass on the CPU keeps; with more, page faults slow it down
PROBE_SAMPLES = 3  # the sample dimension is found as the one of this size, so it is a size that is rare elsewhere

# Called with a parameter's name, a contribution to its per-sample gradients, and the weights of those samples or None.
OnContribution = Callable[[str, Contribution, "Tensor | None"], None]


@dataclass
class Targets:
    """What to differentiate: the losses with labels y, minus the losses with labels `minus` where these are given.

    `weight` (N,) weights the samples' gradients, not their losses.
    """

    y: Nest
    minus: Nest | None = None
    weight: Tensor | None = None

    def objective(self, loss: SampleLoss, output: Any) -> Tensor:
        """Unweighted sum over the samples; `weight` is applied to the per-sample gradients later."""
        total = loss.total(output, self.y)
        return total if self.minus is None else total - loss.total(output, self.minus)

    def part(self, s: slice) -> Targets:
        """The targets of the samples in slice `s`."""
        minus, weight = (None if t is None else take(t, s) for t in (self.minus, self.weight))
        return Targets(take(self.y, s), minus, weight)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on a device; does nothing for None, or on a CPU without bfloat16 instructions."""
    if device.type == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        dtype = None
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


class SampleGradients:
    """Per-sample gradients of a model's losses: through rules for known functions, through vmap(grad) for the rest.

    Args:
        model: in eval mode, or otherwise such that one sample's output does not depend on the other samples.
        loss: per-sample losses.
        names: the parameters.
        x: a batch; its first samples are used to check the rules against autograd.
        dtype: dtype of autocast, or None for none.

    Raises:
        ValueError: the model returns no tensor with a row for each sample.
    """

    def __init__(self, model: nn.Module, loss: SampleLoss, names: list[str], x: Nest, dtype: torch.dtype | None):
        self.model, self.loss, self.names = lent(model), loss, names
        self.device = model_device(model)
        self.dtype: torch.dtype | None = None
        # No parameter requires gradients in the passes, so autograd never computes weight gradients of the batch.
        self.frozen = split_values(self.model, [name for name, _ in model.named_parameters()])[0]
        self.channels_last = False
        self.axes: dict[frozenset[str], int | None] | None = None
        self.bytes_per_sample = 1
        self.vmap_works = True
        self.trusted: set[str] = set()
        with exact_products():
            self._check_rules(take(changed(x, Tensor.detach), slice(0, PROBE_SAMPLES)))
        self.dtype = dtype  # not before: its rounding would look like wrong rules
        if dtype is not None:  # in which layers will keep their outputs
            self.bytes_per_sample = max(1, self.bytes_per_sample * dtype.itemsize // torch.float32.itemsize)

    def split(self, x: Nest, y: Nest) -> Iterator[tuple[Nest, Nest]]:
        """The batch in equal parts, on the CPU small enough that a part keeps at most KEPT_ACTIVATION_BYTES."""
        n = count(y)
        limited = self.device.type == "cpu" and self.trusted
        most = max(1, KEPT_ACTIVATION_BYTES // self.bytes_per_sample) if limited else n
        parts = -(-n // most)
        step = -(-n // parts)
        for start in range(0, n, step):
            s = slice(start, start + step)
            yield take(x, s), take(y, s)

    def run(self, x: Nest, targets: Callable[[Any], Iterable[Targets]], on_contribution: OnContribution) -> None:
        """One forward pass, and a backward pass for each of ``targets(output)``.

        `on_contribution` is called with each parameter's name, a contribution, and the weights of its samples. A
        contribution covers all samples, or a parameter gets several that cover consecutive samples in order.
        """
        current = Targets(x)

        def on_trusted(name: str, contribution: Contribution) -> None:
            if name in self.trusted:
                on_contribution(name, contribution, current.weight)

        x = changed(x, Tensor.detach)
        tape = Tape({name: self.frozen[name] for name in self.names}, on_trusted, count(x), self.axes)
        output = self._forward(tape, x)
        pending = list(targets(changed(output, Tensor.detach)))
        for k, current in enumerate(pending):
            with torch.enable_grad():
                objective = current.objective(self.loss, output)
            settled = self._backward(tape, objective, keep=k + 1 < len(pending)) & self.trusted
            rest = [name for name in self.names if name not in settled]
            if rest:
                self._run_without_rules(rest, x, current, on_contribution)

    def _forward(self, tape: Tape, x: Nest) -> Any:
        with torch.enable_grad(), autocast(self.device, self.dtype):
            if self.axes is not None and not self.trusted:  # no rule passed the check: the tape is of no use
                with torch.no_grad():
                    return call(self.model, x)
            with tape:
                return functional_call(self.model, self.frozen, *arguments(self._ordered(x)))

    def _backward(self, tape: Tape, objective: Tensor, *, keep: bool) -> set[str]:
        if tape.sources and objective.requires_grad:
            torch.autograd.grad(objective, tape.sources, allow_unused=True, retain_graph=keep)
        return tape.finish()

    def _run_without_rules(self, names: list[str], x: Nest, targets: Targets, on_contribution: OnContribution) -> None:
        values, rest = split_values(self.model, names)
        n = count(x)
        for start in range(0, n, VMAP_SAMPLES):
            s = slice(start, start + VMAP_SAMPLES)
            part = targets.part(s)
            samples = (take(x, s), part.y) if part.minus is None else (take(x, s), part.y, part.minus)
            flat, sample_of = split_rows(samples, min(VMAP_SAMPLES, n - start))

            def objective(values: dict[str, Tensor], *flat: Tensor, sample_of: Rebuild = sample_of) -> Tensor:
                x, *labels = sample_of([t.unsqueeze(0) for t in flat])
                output = functional_call(self.model, (values, rest), *arguments(x))
                return Targets(*labels).objective(self.loss, output)

            for name, row in self._per_sample_gradients(objective, values, *flat).items():
                on_contribution(name, StoredGradients(row.detach().to(compute_dtype(row))), part.weight)

    def _per_sample_gradients(
        self, objective: Callable[..., Tensor], values: dict[str, Tensor], *samples: Tensor
    ) -> dict[str, Tensor]:
        """Gradients of ``objective(values, *sample)`` for each sample: by vmap, or one by one where vmap fails."""
        if self.vmap_works:
            try:
                with autocast(self.device, self.dtype):
                    return vmap(grad(objective), in_dims=(None, *[0] * len(samples)))(values, *samples)
            except (RuntimeError, ValueError):  # data-dependent control flow, or a function without a batching rule
                self.vmap_works = False
        each = [self._gradients(objective, values, *sample) for sample in zip(*samples, strict=True)]
        return {name: torch.stack([row[name] for row in each]) for name in values}

    def _gradients(
        self, objective: Callable[..., Tensor], values: dict[str, Tensor], *sample: Tensor
    ) -> dict[str, Tensor]:
        """Gradients of ``objective(values, *sample)`` by one ordinary backward pass."""
        leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
        with torch.enable_grad(), autocast(self.device, self.dtype):
            value = objective(leaves, *sample)
        if not value.requires_grad:
            return {name: torch.zeros_like(v) for name, v in values.items()}
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True))

    def _check_rules(self, x: Nest) -> None:
        """Compare weighted sums of a few per-sample gradients with autograd; trust the rules that agree.

        Autograd multiplies by the weights before the backward pass and the rules after it. Rounding commutes with
        multiplication by powers of two, so that deep networks do not turn this into different gradients. Both take
        the same order of memory: another one rounds otherwise, which switches a ReLU near zero.
        """
        n = count(x)
        with torch.no_grad(), autocast(self.device, None):
            output = _floating_rows(call(self.model, x), n)
            alone = _floating_rows(call(self.model, take(x, slice(0, 1))), 1)
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in output)
        tolerance = 1e-2 if half else 1e-3
        if [t.shape for t in alone] != [t[:1].shape for t in output] or any(
            (a - t[:1]).norm() > tolerance * a.norm() for a, t in zip(alone, output, strict=True)
        ):
            self.axes = {}  # outputs depend on other samples of the batch: run every sample alone, without rules
            return
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(t.shape, generator=generator).to(t.device) for t in output]
        weight = torch.tensor([1.0, -2.0, 0.5])[:n].to(self.device)
        found = (
            self._probe(x, noise, weight, use_channels_last=True)
            if self.device.type == "cpu" and ImageOrder(self.model).taken(x)
            else None
        )
        found = found or self._probe(x, noise, weight, use_channels_last=False)
        if found is None:
            self.axes = {}
            return
        tape, got, expected = found
        self.axes = tape.axes
        self.bytes_per_sample = max(1, tape.bytes // n)
        for name in tape.finish():
            size = expected[name].norm()
            error = (got[name] - expected[name]).norm() if name in got else size
            # Gradients of zero cannot confirm which of several equal dimensions holds the samples: do not trust those.
            if error <= tolerance * size and (size > 0 or name not in tape.ambiguous):
                self.trusted.add(name)

    def _probe(
        self, x: Nest, noise: list[Tensor], weight: Tensor, *, use_channels_last: bool
    ) -> tuple[Tape, dict[str, Tensor], dict[str, Tensor]] | None:
        """The tape of one pass, and weighted sums of gradients by the rules and by autograd; None if a pass raises.

        Images are in channels-last memory order if asked for.
        """
        given = self.frozen
        if use_channels_last:
            weights = {f"{n}.weight".removeprefix(".") for n, m in self.model.named_modules() if type(m) is nn.Conv2d}
            self.frozen = {name: channels_last(v) if name in weights else v for name, v in given.items()}
        self.channels_last = use_channels_last
        got: dict[str, Tensor] = {}

        def on_contribution(name: str, contribution: Contribution) -> None:
            got[name] = contribution.weighted_sum(weight)

        tape = Tape({name: self.frozen[name] for name in self.names}, on_contribution, count(x))
        try:
            with torch.enable_grad():
                objective = _products(_floating_rows(self._forward(tape, x), count(x)), noise)
            self._backward(tape, objective, keep=False)
            expected = self._weighted_sums(x, [e * weight.view(-1, *[1] * (e.dim() - 1)) for e in noise])
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if not use_channels_last:
                warnings.warn(
                    f"per-sample gradients fall back to vmap, which is slower: watching the model raised {error!r}",
                    stacklevel=2,
                )
            self.channels_last, self.frozen = False, given  # some models need contiguous inputs
            return None
        return tape, got, expected

    def _weighted_sums(self, x: Nest, factors: list[Tensor]) -> dict[str, Tensor]:
        """Gradients of the sum of all outputs times their factors, by autograd."""
        leaves = {name: self.frozen[name].clone().requires_grad_() for name in self.names}
        with torch.enable_grad(), autocast(self.device, None):
            given = {**self.frozen, **leaves}
            output = _floating_rows(functional_call(self.model, given, *arguments(self._ordered(x))), count(x))
            objective = _products(output, factors)
        gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True))

    def _ordered(self, x: Nest) -> Nest:
        return channels_last(x) if self.channels_last else x


def _floating_rows(output: Any, samples: int) -> list[Tensor]:
    """What can be differentiated of a model's output."""
    return [t for t in split_rows(rows(output, samples), samples)[0] if t.is_floating_point()]


def _products(outputs: list[Tensor], factors: list[Tensor]) -> Tensor:
    """The sum of all products of two lists."""
    return sum(
        ((t * f).sum() for t, f in zip(outputs, factors, strict=True)), torch.zeros((), device=outputs[0].device)
    )


def split_values(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached values of the chosen parameters, and of all other parameters and buffers."""
    chosen = set(names)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: everything[name].detach() for name in names}
    return values, {name: t.detach() for name, t in everything.items() if name not in chosen}
