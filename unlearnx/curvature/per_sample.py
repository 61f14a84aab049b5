"""Forward and backward passes over batches that yield per-sample gradients, as contributions, of any model.

:class:`SampleGradients` runs the model with a :class:`~unlearnx.curvature.tape.Tape`, which hands each parameter's
:class:`~unlearnx.curvature.contributions.Contribution` to a callback. Parameters that the tape cannot follow go
through ``torch.func.vmap(grad)``; their contributions are the stored gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

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

    y: Tensor
    minus: Tensor | None = None
    weight: Tensor | None = None

    def objective(self, loss: SampleLoss, output: Tensor) -> Tensor:
        """Unweighted sum over the samples; `weight` is applied to the per-sample gradients later."""
        total = loss.total(output, self.y)
        return total if self.minus is None else total - loss.total(output, self.minus)

    def part(self, s: slice) -> Targets:
        """The targets of the samples in slice `s`."""
        minus, weight = (None if t is None else t[s] for t in (self.minus, self.weight))
        return Targets(self.y[s], minus, weight)


def autocast(x: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on the device of `x`; does nothing for None, or on a CPU without bfloat16 instructions."""
    device = x.device.type
    if device == "cpu" and not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        dtype = None
    return torch.autocast(device, dtype, enabled=dtype is not None)


class SampleGradients:
    """Per-sample gradients of a model's losses: through rules for known functions, through vmap(grad) for the rest.

    Args:
        model: in eval mode, or otherwise such that one sample's output does not depend on the other samples.
        loss: per-sample losses.
        names: the parameters.
        x: a batch; its first samples are used to check the rules against autograd.
        dtype: dtype of autocast, or None for none.

    Raises:
        ValueError: the model does not return one tensor with a row for each sample.
    """

    def __init__(self, model: nn.Module, loss: SampleLoss, names: list[str], x: Tensor, dtype: torch.dtype | None):
        self.model, self.loss, self.names = lent(model), loss, names
        self.dtype: torch.dtype | None = None
        # No parameter requires gradients in the passes, so autograd never computes weight gradients of the batch.
        self.frozen = split_values(self.model, [name for name, _ in model.named_parameters()])[0]
        self.channels_last = False
        self.axes: dict[frozenset[str], int | None] | None = None
        self.bytes_per_sample = 1
        self.vmap_works = True
        self.trusted: set[str] = set()
        with exact_products():
            self._check_rules(x[:PROBE_SAMPLES].detach())
        self.dtype = dtype  # not before: its rounding would look like wrong rules
        if dtype is not None:  # in which layers will keep their outputs
            self.bytes_per_sample = max(1, self.bytes_per_sample * dtype.itemsize // torch.float32.itemsize)

    def split(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch in equal parts, on the CPU small enough that a part keeps at most KEPT_ACTIVATION_BYTES."""
        most = (
            max(1, KEPT_ACTIVATION_BYTES // self.bytes_per_sample)
            if x.device.type == "cpu" and self.trusted
            else len(x)
        )
        parts = -(-len(x) // most)
        step = -(-len(x) // parts)
        for start in range(0, len(x), step):
            yield x[start : start + step], y[start : start + step]

    def run(self, x: Tensor, targets: Callable[[Tensor], Iterable[Targets]], on_contribution: OnContribution) -> None:
        """One forward pass, and a backward pass for each of ``targets(output)``.

        `on_contribution` is called with each parameter's name, a contribution, and the weights of its samples. A
        contribution covers all samples, or a parameter gets several that cover consecutive samples in order.
        """
        current = Targets(x)

        def on_trusted(name: str, contribution: Contribution) -> None:
            if name in self.trusted:
                on_contribution(name, contribution, current.weight)

        x = x.detach()
        tape = Tape({name: self.frozen[name] for name in self.names}, on_trusted, len(x), self.axes)
        output = self._forward(tape, x)
        pending = list(targets(output.detach()))
        for k, current in enumerate(pending):
            with torch.enable_grad():
                objective = current.objective(self.loss, output)
            settled = self._backward(tape, objective, keep=k + 1 < len(pending)) & self.trusted
            rest = [name for name in self.names if name not in settled]
            if rest:
                self._run_without_rules(rest, x, current, on_contribution)

    def _forward(self, tape: Tape, x: Tensor) -> Tensor:
        with torch.enable_grad(), autocast(x, self.dtype):
            if self.axes is not None and not self.trusted:  # no rule passed the check: the tape is of no use
                with torch.no_grad():
                    return self.model(x)
            with tape:
                return functional_call(self.model, self.frozen, (self._ordered(x),))

    def _backward(self, tape: Tape, objective: Tensor, *, keep: bool) -> set[str]:
        if tape.sources and objective.requires_grad:
            torch.autograd.grad(objective, tape.sources, allow_unused=True, retain_graph=keep)
        return tape.finish()

    def _run_without_rules(
        self, names: list[str], x: Tensor, targets: Targets, on_contribution: OnContribution
    ) -> None:
        values, rest = split_values(self.model, names)

        def objective(values: dict[str, Tensor], x: Tensor, *labels: Tensor) -> Tensor:
            output = functional_call(self.model, (values, rest), (x.unsqueeze(0),))
            return Targets(*(y.unsqueeze(0) for y in labels)).objective(self.loss, output)

        for start in range(0, len(x), VMAP_SAMPLES):
            s = slice(start, start + VMAP_SAMPLES)
            part = targets.part(s)
            labels = (part.y,) if part.minus is None else (part.y, part.minus)
            rows = self._per_sample_gradients(objective, values, x[s], *labels)
            for name, row in rows.items():
                on_contribution(name, StoredGradients(row.detach().to(compute_dtype(row))), part.weight)

    def _per_sample_gradients(
        self, objective: Callable[..., Tensor], values: dict[str, Tensor], *samples: Tensor
    ) -> dict[str, Tensor]:
        """Gradients of ``objective(values, *sample)`` for each sample: by vmap, or one by one where vmap fails."""
        if self.vmap_works:
            try:
                with autocast(samples[0], self.dtype):
                    return vmap(grad(objective), in_dims=(None, *[0] * len(samples)))(values, *samples)
            except (RuntimeError, ValueError):  # data-dependent control flow, or a function without a batching rule
                self.vmap_works = False
        rows = [_gradients(objective, values, *sample, dtype=self.dtype) for sample in zip(*samples, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in values}

    def _check_rules(self, x: Tensor) -> None:
        """Compare weighted sums of a few per-sample gradients with autograd; trust the rules that agree.

        Autograd multiplies by the weights before the backward pass and the rules after it. Rounding commutes with
        multiplication by powers of two, so that deep networks do not turn this into different gradients. Nor does the
        order of memory, which both take alike: another one rounds otherwise, and a ReLU near zero may then be off.
        """
        with torch.no_grad(), autocast(x, None):
            output = self.model(x)
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(x):
            what = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"model: returned {what} for {len(x)} samples, expected a tensor whose first dimension is the samples"
            )
        with torch.no_grad(), autocast(x, None):
            alone = self.model(x[:1])
        tolerance = 1e-2 if output.dtype in (torch.bfloat16, torch.float16) else 1e-3
        if alone.shape != output[:1].shape or (alone - output[:1]).norm() > tolerance * alone.norm():
            self.axes = {}  # outputs depend on other samples of the batch: run every sample alone, without rules
            return
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        weight = torch.tensor([1.0, -2.0, 0.5])[: len(x)].to(output.device)
        found = (
            self._probe(x, noise, weight, use_channels_last=True)
            if x.device.type == "cpu" and ImageOrder(self.model).taken(x)
            else None
        )
        found = found or self._probe(x, noise, weight, use_channels_last=False)
        if found is None:
            self.axes = {}
            return
        tape, got, expected = found
        self.axes = tape.axes
        self.bytes_per_sample = max(1, tape.bytes // len(x))
        for name in tape.finish():
            size = expected[name].norm()
            error = (got[name] - expected[name]).norm() if name in got else size
            # Gradients of zero cannot confirm which of several equal dimensions holds the samples: do not trust those.
            if error <= tolerance * size and (size > 0 or name not in tape.ambiguous):
                self.trusted.add(name)

    def _probe(
        self, x: Tensor, noise: Tensor, weight: Tensor, *, use_channels_last: bool
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

        tape = Tape({name: self.frozen[name] for name in self.names}, on_contribution, len(x))
        try:
            with torch.enable_grad():
                objective = (self._forward(tape, x) * noise).sum()
            self._backward(tape, objective, keep=False)
            expected = self._weighted_sums(x, noise * weight.view(-1, *[1] * (noise.dim() - 1)))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if not use_channels_last:
                warnings.warn(
                    f"per-sample gradients fall back to vmap, which is slower: watching the model raised {error!r}",
                    stacklevel=2,
                )
            self.channels_last, self.frozen = False, given  # some models need contiguous inputs
            return None
        return tape, got, expected

    def _weighted_sums(self, x: Tensor, output_weights: Tensor) -> dict[str, Tensor]:
        """Gradients of the weighted sum of all outputs, by autograd."""
        leaves = {name: self.frozen[name].clone().requires_grad_() for name in self.names}
        with torch.enable_grad(), autocast(x, None):
            output = functional_call(self.model, {**self.frozen, **leaves}, (self._ordered(x),))
            objective = (output * output_weights).sum()
        gradients = torch.autograd.grad(objective, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True))

    def _ordered(self, x: Tensor) -> Tensor:
        return channels_last(x) if self.channels_last else x


def _gradients(
    objective: Callable[..., Tensor], values: dict[str, Tensor], x: Tensor, *rest: Tensor, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Gradients of ``objective(values, x, *rest)`` by one ordinary backward pass."""
    leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
    with torch.enable_grad(), autocast(x, dtype):
        value = objective(leaves, x, *rest)
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), materialize_grads=True), strict=True))


def split_values(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached values of the chosen parameters, and of all other parameters and buffers."""
    chosen = set(names)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: everything[name].detach() for name in names}
    return values, {name: t.detach() for name, t in everything.items() if name not in chosen}
