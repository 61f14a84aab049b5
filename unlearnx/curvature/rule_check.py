"""Whether the rules give the gradients of a model: compared with autograd on the first samples, once for a model."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._batches import Nest, arguments, changed, count, rows, split_rows, take
from unlearnx._functional import functional_call
from unlearnx._memory_order import ImageOrder, channels_last
from unlearnx._precision import exact_products
from unlearnx._remembered import Remembered
from unlearnx._warnings import warn
from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.places import ShapeLog
from unlearnx.curvature.tape import Places, Tape

PROBE_SAMPLES = 3
WEIGHTS = (1.0, -2.0, 0.5)  # of those samples: powers of two, which rounding commutes with
WHOLE_ENTRIES = 1 << 20  # of gradients that are compared entry by entry
ROUNDING = 1e3  # times the dtype's epsilon: what is below that beside its own terms is a zero


@dataclass(frozen=True)
class Checked:
    """What is known of a model whose rules were checked.

    Attributes:
        trusted: parameters whose rules agree with autograd, and experts that none of the few samples needed, where the
            rules agree for others of the same name but for its number.
        unused: parameters that no function was called with, and that the outputs do not depend on.
        places: where the samples are in the tensors of calls, see :class:`~unlearnx.curvature.tape.Tape`; empty where
            samples have to run alone.
        bytes_per_sample: memory of the outputs that the tape watches.
        use_channels_last: whether images are to be in that order of memory.
    """

    trusted: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()
    places: Places | None = None
    bytes_per_sample: int = 1
    use_channels_last: bool = False


def weights_reordered(model: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of a model's parameters, weights of convolutions in channels-last order of memory."""
    weights = {f"{n}.weight".removeprefix(".") for n, m in model.named_modules() if type(m) is nn.Conv2d}
    return {name: channels_last(v) if name in weights else v for name, v in values.items()}


_known: Remembered[Checked] = Remembered()


def checked(model: nn.Module, twin: nn.Module, values: dict[str, Tensor], names: list[str], x: Nest) -> Checked:
    """The check of the rules for `names` on the first samples of x.

    It is made once for a model: another call on the same modules with the same settings and inputs of the same shapes
    finds the answer. Values of parameters do not matter to it, which functions they go through does.

    Args:
        model: the user's model.
        twin: the model to call.
        values: of all parameters of the model.
        names: parameters to be watched.
        x: a batch.

    Raises:
        ValueError: the model returns no tensor with a row for each sample.
    """
    x = take(changed(x, Tensor.detach), torch.arange(PROBE_SAMPLES) % count(x))

    def find() -> Checked:
        with exact_products(), torch.autocast(values_device(values).type, enabled=False):
            return _Check(twin, values, names, x).result()

    found = _known.of(model, x, tuple(names), find)
    assert found is not None
    return found


def values_device(values: dict[str, Tensor]) -> torch.device:
    """The device of a model's parameters."""
    return next(iter(values.values())).device


class _Check:
    """Compares weighted sums of a few per-sample gradients with autograd.

    Autograd multiplies by the weights before the backward pass and the rules after it. Rounding commutes with
    multiplication by powers of two, so that deep networks do not turn this into different gradients. Both take the
    same order of memory: another one rounds otherwise, which switches a ReLU near zero.

    A gradient may be zero in exact arithmetic, as that of a bias which is added to all keys of an attention. What is
    computed then is rounding, on the scale of the terms that cancelled: their absolute values are summed too.
    """

    def __init__(self, model: nn.Module, values: dict[str, Tensor], names: list[str], x: Nest):
        self.model, self.values, self.names, self.x = model, values, names, x
        self.device, self.samples = values_device(values), count(x)
        self.weight = torch.tensor(WEIGHTS, device=self.device)[: self.samples]
        self.use_channels_last = False

    def result(self) -> Checked:
        self.log = ShapeLog({name: self.values[name] for name in self.names})
        with torch.enable_grad():
            self.alone = self._output(self.values, take(self.x, slice(0, 1)), self.log)
        ordered = self.device.type == "cpu" and ImageOrder(self.model).taken(self.x)
        found = self._passes(use_channels_last=True) if ordered else None
        found = found or self._passes(use_channels_last=False)
        if found is None:
            return Checked(places={})
        tape, sums, expected = found
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in self.alone)
        tolerance = 1e-2 if half else 1e-3
        if [t.shape for t in self.alone] != [t.shape for t in self.first] or any(
            (a - t).norm() > tolerance * a.norm() for a, t in zip(self.alone, self.first, strict=True)
        ):
            return Checked(places={})  # outputs depend on other samples of the batch: run every sample alone
        trusted, zeros = set(), []
        for name in tape.finish():
            true, got = expected.get(name), sums.get(name)
            size = 0.0 if true is None else float(true.norm())
            if true is None or got is None:
                error = size if got is None else float(got.norm())
            else:
                error = float((got - true).norm())
            # Gradients of zero cannot confirm which of several equal dimensions holds the samples.
            known = name not in tape.ambiguous
            if error <= tolerance * size and (size > 0 or known):
                trusted.add(name)
            elif known and name in expected and name in sums:
                zeros.append(name)
        if zeros:
            scales = self._scales(zeros, tape.places)
            for name in zeros:
                zero = ROUNDING * torch.finfo(self.values[name].dtype).eps * scales[name]
                if expected[name].norm() <= zero and sums[name].norm() <= zero:
                    trusted.add(name)
        unused = {name for name in self.names if name not in expected and name not in tape.seen}
        alike = {_numberless(name) for name in trusted} - {_numberless(name) for name in tape.seen - trusted}
        trusted |= {name for name in unused if _numberless(name) in alike}
        size = max(1, tape.bytes // self.samples)
        return Checked(frozenset(trusted), frozenset(unused), tape.places, size, self.use_channels_last)

    def _passes(self, *, use_channels_last: bool) -> tuple[Tape, dict[str, Tensor], dict[str, Tensor]] | None:
        """The tape of one pass, and weighted sums of gradients by the rules and by autograd; None if a pass raises.

        Autograd's are missing where the outputs do not depend on a parameter.
        """
        self.use_channels_last = use_channels_last
        self.ordered = weights_reordered(self.model, self.values) if use_channels_last else self.values
        sums: dict[str, Tensor] = {}

        def on_contribution(name: str, contribution: Contribution) -> None:
            sums[name] = _summary(contribution.weighted_sum(self.weight))

        tape = Tape({n: self.ordered[n] for n in self.names}, on_contribution, self.samples, alone=self.log)
        try:
            self._watch(tape)
            return tape, sums, self._by_autograd()
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if not use_channels_last:  # else some models need contiguous inputs
                warn(f"per-sample gradients are computed one by one, which is slower: the model raised {error!r}")
            self.use_channels_last = False
            return None

    def _watch(self, tape: Tape) -> None:
        with torch.enable_grad():
            output = self._output(self.ordered, self.x, tape)
            self.first = [t[:1].detach() for t in output]
            generator = torch.Generator().manual_seed(0)
            self.noise = [torch.randn(t.shape, generator=generator).to(t.device) for t in output]
            objective = _products(output, self.noise)
        if tape.sources and objective.requires_grad:
            torch.autograd.grad(objective, tape.sources, allow_unused=True)
        tape.finish()

    def _scales(self, names: list[str], places: Places) -> dict[str, Tensor]:
        """For each parameter, the norm of what its weighted sum would be if nothing in it cancelled."""
        scales = {name: torch.zeros((), device=self.device) for name in names}

        def on_scale(name: str, contribution: Contribution) -> None:
            if name in scales:
                scales[name] += _summary(contribution.weighted_sum(self.weight.abs())).norm()

        own = {n: self.ordered[n] for n in self.names}
        self._watch(Tape(own, lambda *_: None, self.samples, places, on_scale=on_scale))
        return scales

    def _by_autograd(self) -> dict[str, Tensor]:
        """Gradients of the weighted sum of all outputs times the noise, one parameter at a time in memory."""
        sums: dict[str, Tensor] = {}
        leaves = {name: self.ordered[name].detach().requires_grad_() for name in self.names}

        def taken(name: str, leaf: Tensor) -> None:
            assert leaf.grad is not None
            sums[name], leaf.grad = _summary(leaf.grad), None

        for name, leaf in leaves.items():
            leaf.register_post_accumulate_grad_hook(partial(taken, name))
        factors = [e * self.weight.view(-1, *[1] * (e.dim() - 1)) for e in self.noise]
        with torch.enable_grad():
            objective = _products(self._output({**self.ordered, **leaves}, self.x), factors)
        if objective.requires_grad:
            torch.autograd.backward(objective, inputs=list(leaves.values()))
        return sums

    def _output(self, values: dict[str, Tensor], x: Nest, watched_by: Any = None) -> list[Tensor]:
        """What can be differentiated of the model's output."""
        given, n = arguments(channels_last(x) if self.use_channels_last else x), count(x)
        with watched_by or nullcontext():
            output = functional_call(self.model, values, *given)
        return [t for t in split_rows(rows(output, n), n)[0] if t.is_floating_point()]


def _numberless(name: str) -> str:
    """What the parameters of experts have in common, some of which no token of a few samples may go to."""
    return re.sub(r"\d+", "#", name)


def _summary(gradient: Tensor) -> Tensor:
    """The gradient, or of a large one the products of its rows with a random vector, whose norm tells its own."""
    if gradient.numel() <= WHOLE_ENTRIES:
        return gradient.detach().clone()
    rows = gradient.detach().flatten(1)
    signs = torch.randint(2, rows.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    return rows @ signs.to(rows)


def _products(outputs: list[Tensor], factors: list[Tensor]) -> Tensor:
    """The sum of all products of two lists."""
    return sum(
        ((t * f).sum() for t, f in zip(outputs, factors, strict=True)), torch.zeros((), device=outputs[0].device)
    )
