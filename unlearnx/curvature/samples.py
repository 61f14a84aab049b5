"""Forward and backward passes over batches that yield per-sample gradients, as contributions, of any model.

:class:`SampleGradients` runs the model with a :class:`~unlearnx.curvature.tape.Tape`, which hands each parameter's
:class:`~unlearnx.curvature.contributions.Contribution` to a callback. Parameters that the tape cannot follow go through
:class:`~unlearnx.curvature.single_samples.SingleSamples`; their contributions are the stored gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._batches import Nest, arguments, call, changed, count, take
from unlearnx._checks import model_device
from unlearnx._copies import lent
from unlearnx._functional import functional_call
from unlearnx._losses import SampleLoss
from unlearnx._memory_order import channels_last
from unlearnx._precision import autocast
from unlearnx._warnings import warn
from unlearnx.curvature.contributions import Contribution, StoredGradients
from unlearnx.curvature.double_backward import TwiceDifferentiable
from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.pace import Pace
from unlearnx.curvature.rule_check import checked, weights_reordered
from unlearnx.curvature.single_samples import SingleSamples
from unlearnx.curvature.tape import Tape
from unlearnx.curvature.targets import Targets
from unlearnx.ops._recording import Recording

KEPT_ACTIVATION_BYTES = 1 << 26  # layer outputs that one pass on the CPU keeps; with more, page faults slow it down
SHOWN_NAMES = 4  # parameters without a rule that a warning names

# Called with a parameter's name, a contribution to its per-sample gradients, and the weights of those samples or None.
OnContribution = Callable[[str, Contribution, "Tensor | None"], None]


class SampleGradients:
    """Per-sample gradients of a model's losses: through rules for known functions, sample by sample for the rest.

    Args:
        model: in eval mode, or otherwise such that one sample's output does not depend on the other samples.
        loss: per-sample losses.
        names: the parameters.
        x: a batch; its first samples are used to check the rules against autograd.
        dtype: dtype of autocast, or None for none.
        need_rules: parameters with a rule go by it also where a loop over single samples would be faster for all.

    Attributes:
        missing: parameters without a rule.

    Raises:
        ValueError: the model returns no tensor with a row for each sample.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: SampleLoss,
        names: list[str],
        x: Nest,
        dtype: torch.dtype | None,
        *,
        need_rules: bool = False,
    ):
        self.model, self.loss, self.names = lent(model), loss, names
        self.device, self.dtype = model_device(model), dtype
        # No parameter requires gradients in the passes, so autograd never computes weight gradients of the batch.
        self.frozen = split_values(self.model, [name for name, _ in model.named_parameters()])[0]
        found = checked(model, self.model, self.frozen, names, x)
        self.places, self.trusted, self.unused = found.places, found.trusted, found.unused
        self.use_channels_last = found.use_channels_last
        if self.use_channels_last:
            self.frozen = weights_reordered(self.model, self.frozen)
        self.bytes_per_sample = found.bytes_per_sample
        if dtype is not None:  # in which layers will keep their outputs
            self.bytes_per_sample = max(1, self.bytes_per_sample * dtype.itemsize // torch.float32.itemsize)
        self._one_by_one = SingleSamples(self.model, loss, self.device, dtype)
        self._loop = SingleSamples(self.model, loss, self.device, dtype, use_vmap=False)
        self._looping = False  # all parameters of the current part, those with a rule too
        self.missing = [name for name in names if name not in self.trusted and name not in self.unused]
        if self.missing:
            _warn_of(self.missing, len(names))
        may_loop = self.missing and self.trusted and not need_rules and self.device.type == "cpu"
        self._pace = Pace() if may_loop else None

    def split(self, x: Nest, y: Nest) -> Iterator[tuple[Nest, Nest]]:
        """The batch in equal parts; on the CPU a part keeps at most KEPT_ACTIVATION_BYTES, or what the parameters take.

        Every part reads all parameters: with smaller parts, that would cost more than page faults. Of a model with
        parameters that have no rule, the first parts are those that :class:`~unlearnx.curvature.pace.Pace` times.
        """
        n = count(y)
        limited = self.device.type == "cpu" and self.trusted
        kept = max(KEPT_ACTIVATION_BYTES, sum(p.nbytes for p in self.frozen.values()))
        most = max(1, kept // self.bytes_per_sample) if limited else n
        start = 0
        while start < n:
            left = n - start
            step = -(-left // -(-left // most))
            if self._pace is not None:
                step, self._looping = min(step, self._pace.samples or step), self._pace.loop_is_next
            s = slice(start, start + step)
            yield take(x, s), take(y, s)
            start, self._looping = s.stop, False

    def run(
        self,
        x: Nest,
        targets: Callable[[Callable[[], Any]], Iterable[Targets]],
        on_contribution: OnContribution,
        names: Collection[str] | None = None,
    ) -> None:
        """One forward pass, and a backward pass for each of ``targets(output)``, where ``output()`` is the model's.

        `on_contribution` is called with each parameter's name, a contribution, and the weights of its samples. A
        contribution covers all samples, or a parameter gets several that cover consecutive samples in order. It is
        called for the parameters of these `names` only; None for all.
        """
        x = changed(x, Tensor.detach)
        wanted = [name for name in self.names if names is None or name in names]
        if self._looping or not self.trusted:
            seconds = 0.0
            for current in targets(lambda: self._output(x)):
                seconds += self._run_without_rules(wanted, x, current, on_contribution)
            if self._looping and self._pace is not None:
                self._pace.loop = seconds
        else:
            self._run_rules(x, targets, on_contribution, wanted)

    def _run_rules(
        self,
        x: Nest,
        targets: Callable[[Callable[[], Any]], Iterable[Targets]],
        on_contribution: OnContribution,
        wanted: list[str],
    ) -> None:
        current = Targets(x)

        def on_trusted(name: str, contribution: Contribution) -> None:
            if name in self.trusted and name in wanted:
                on_contribution(name, contribution, current.weight)

        start, others, apart = perf_counter(), 0.0, 0.0
        tape = Tape({name: self.frozen[name] for name in self.names}, on_trusted, count(x), self.places)
        output = self._forward(tape, x)
        pending = list(targets(lambda: changed(output, Tensor.detach)))
        for k, current in enumerate(pending):
            # The cross-entropy in closed form copies no scores, which may be those of all tokens of a vocabulary.
            with torch.enable_grad(), TwiceDifferentiable(Derivatives(Recording())):
                objective = current.objective(self.loss, output)
            settled = self._backward(tape, objective, keep=k + 1 < len(pending)) & self.trusted
            settled |= (self.trusted | self.unused) - tape.seen  # what no function was called with
            rest = [name for name in wanted if name not in settled]
            if rest:
                begin = perf_counter()
                others += self._run_without_rules(rest, x, current, on_contribution)
                apart += perf_counter() - begin
        if self._pace is not None:
            self._pace.rules = (perf_counter() - start - apart) / count(x) + others

    def _output(self, x: Nest) -> Any:
        with torch.no_grad(), autocast(self.device, self.dtype):
            return call(self.model, x)

    def _forward(self, tape: Tape, x: Nest) -> Any:
        with torch.enable_grad(), autocast(self.device, self.dtype), tape:
            ordered = channels_last(x) if self.use_channels_last else x
            return functional_call(self.model, self.frozen, *arguments(ordered))

    def _backward(self, tape: Tape, objective: Tensor, *, keep: bool) -> set[str]:
        if tape.sources and objective.requires_grad:
            torch.autograd.grad(objective, tape.sources, allow_unused=True, retain_graph=keep)
        return tape.finish()

    def _run_without_rules(self, names: list[str], x: Nest, targets: Targets, on_contribution: OnContribution) -> float:
        """Returns the seconds that a sample takes."""
        values, rest = split_values(self.model, names)
        start, times = perf_counter(), []
        for gradients, weight in (self._loop if self._looping else self._one_by_one)(values, rest, x, targets):
            for name, rows in gradients.items():
                on_contribution(name, StoredGradients(rows), weight)
            begin, start = start, perf_counter()
            times.append((start - begin) / len(rows))
        return min(times[1:] or times)  # the first call is slower than those that follow


def _warn_of(missing: list[str], of: int) -> None:
    shown = ", ".join(map(repr, missing[:SHOWN_NAMES])) + (", ..." if len(missing) > SHOWN_NAMES else "")
    warn(
        f"per-sample gradients of {len(missing)} of {of} parameters are computed sample by sample, which is slower: no "
        f"rule covers what the model does with {shown}; unlearnx.curvature.register_rule adds one for a function"
    )


def split_values(model: nn.Module, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Detached values of the chosen parameters, and of all other parameters and buffers."""
    chosen = set(names)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: everything[name].detach() for name in names}
    return values, {name: t.detach() for name, t in everything.items() if name not in chosen}
