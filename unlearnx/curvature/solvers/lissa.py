"""Linear-time stochastic second-order iteration."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one
from unlearnx._distributed import broadcast_
from unlearnx.curvature.solvers.cuda_graph import can_capture
from unlearnx.curvature.solvers.lissa_on_device import Batches, iterate_on_device
from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solver, _Solving
from unlearnx.curvature.spectrum import NotFinite
from unlearnx.ops.lissa_step import lissa_step_

ATTEMPTS = 5  # scales that "auto" tries
GROWTH = 4.0  # from one of them to the next
LONGEST = 10_000  # iterations that "auto" may take where these are more than 100 passes over the data
CONVERGED = "converged"


@dataclass
class LiSSA(Solver):
    """Linear-time stochastic second-order iteration ``h <- v + (1 - damping) h - C h / scale``, x = h / scale.

    It solves ``(C + damping * scale * I) x = v`` where ``scale`` exceeds half the largest eigenvalue of C, which
    includes the operator's own damping.

    On a GPU iterations are replays of a CUDA graph, and the host looks at the updates now and then: of batches of one
    size, each recorded anew, and of products over all the data, on graphs that are kept. The last batch of a pass, if
    it is smaller, is run as it is. Nothing is captured where processes share the work, under autocast, or where the
    data are no tensors or, on another device than the model, take more than a quarter of its free memory. Where a
    model cannot be captured, as it waits for the device or copies from the host, a warning says so and the host looks
    at each update.

    Args:
        damping: coefficient of the iteration, without unit; as a Tikhonov term it is ``damping * scale``.
        scale: in units of the curvature, or ``"auto"`` for 1.1 times the largest eigenvalue over all the data. Batches
            may have far larger ones: a run that diverges for that is repeated with four times the scale, and so on.
        batch_size: samples in one product; None for all of them.
        recursion_depth: most iterations; None for 100 passes over the data, as published, and where that is not enough
            for ``scale="auto"``, as many as its rate of convergence asks for.
        num_repeat: independent runs to average.
        patience: iterations without a smaller update after which a larger one ends a run, as published.
        seed: of the order of the samples.
        tolerance: residual at which a solution counts as converged. With ``scale="auto"`` and products over all
            the data, where updates are residuals, the iteration ends there.

    Source: Agarwal, Bullins and Hazan, JMLR 2017; stopping rule of Warnecke et al., NDSS 2023, public code.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> solution = LiSSA(damping=0.0, batch_size=None).solve(operator, v)  # scale found from the spectrum
        >>> solution.converged, solution.scale > 0
        (True, True)
    """

    damping: float = 1e-2
    scale: float | str = "auto"
    batch_size: int | None = 1024
    recursion_depth: int | None = None
    num_repeat: int = 1
    patience: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale != "auto" and not (isinstance(self.scale, (int, float)) and 0 < self.scale < math.inf):
            raise ValueError(f"scale is {self.scale!r}, expected a number > 0 or 'auto'")
        if not 0 <= self.damping < 1:
            raise ValueError(f"damping is {self.damping}, expected a number in [0, 1)")
        check_at_least_one(
            batch_size=self.batch_size,
            recursion_depth=self.recursion_depth,
            num_repeat=self.num_repeat,
            patience=self.patience,
        )

    def _solve(self, solving: _Solving) -> Tensor | None:
        if not solving.norms.any():
            return None
        generator = torch.Generator().manual_seed(self.seed)
        try:
            solving.scale = self._scale(solving, generator)
        except NotFinite as reason:
            solving.stopped = str(reason)
            return None
        for attempt in range(ATTEMPTS if self.scale == "auto" else 1):
            solving.scale *= GROWTH if attempt else 1
            solving.extra_damping = self.damping * solving.scale
            solving.x = self._average(solving, generator)
            residual = solving.residuals(solving.x)
            if bool((residual < 1).all()):
                break
        return residual

    def _scale(self, solving: _Solving, generator: torch.Generator) -> float:
        if self.scale != "auto":
            return float(self.scale)
        spectrum = solving.operator.spectrum(generator=generator)
        solving.iterations += spectrum.iterations
        scale = 1.1 * spectrum.largest if spectrum.largest > 0 else 1.0  # without curvature there is no scale
        eigenvalue = spectrum.smallest + self.damping * scale
        if eigenvalue < -1e-6 * abs(spectrum.largest):  # it is found from inside: there is one at least as small
            raise IndefiniteSystem(self, solving.operator, eigenvalue, spectrum.largest, spectrum.smallest_error)
        return scale

    def _depth(self, solving: _Solving, batches: int) -> int:
        if self.recursion_depth is not None:
            return self.recursion_depth
        depth = 100 * batches
        rate = self.damping + solving.operator.damping / solving.scale  # at which the slowest error shrinks
        if self.scale == "auto" and rate > 0:
            depth = max(depth, math.ceil(math.log(2 / self.tolerance) / rate))
        return min(depth, max(100 * batches, LONGEST))

    def _average(self, solving: _Solving, generator: torch.Generator) -> Tensor:
        x = torch.zeros_like(solving.v)
        for _ in range(self.num_repeat):
            x.add_(self._run(solving, generator), alpha=1 / (solving.scale * self.num_repeat))
            if not x.isfinite().all():
                break
        return x

    def _run(self, solving: _Solving, generator: torch.Generator) -> Tensor:
        operator = solving.operator
        batch_size = min(self.batch_size or len(operator), len(operator))
        depth = self._depth(solving, math.ceil(len(operator) / batch_size))
        enough = self.tolerance / 2 if self.scale == "auto" and batch_size == len(operator) else 0.0
        runs = [_Run(size, self.patience) for size in (enough * solving.v.abs().sum(1)).tolist()]
        progress = _Progress(solving, runs, self.tolerance, depth)
        damping = self.damping + operator.damping / solving.scale  # the operator's own at no cost
        if not enough and solving.norms.all():
            h = self._closed_form(progress, damping, batch_size, generator)
            if h is not None:
                return h
        h = solving.v.clone()
        self._device_loop(progress, h, damping, batch_size, generator)
        if not progress.over:
            self._host_loop(progress, h, damping, batch_size, generator)
        return h

    def _closed_form(
        self, progress: _Progress, damping: float, batch_size: int, generator: torch.Generator
    ) -> Tensor | None:
        """The run on softmax regression, by the published rule to stop alone; None where another may be needed."""
        solving, operator = progress.solving, progress.solving.operator
        regression = operator.softmax_regression()
        if regression is None:
            return None
        before, n = generator.get_state(), len(operator)
        solutions, history = regression.lissa(
            [operator.layout.split(row) for row in solving.v],
            damping=damping,
            scale=solving.scale,
            batch_size=batch_size,
            iterations=progress.depth,
            patience=self.patience,
            order=operator.shuffled(generator).to(solving.v.device) if batch_size < n else None,
        )
        if bool((history == 0).any()):  # updates of nothing, after which the residual decides
            generator.set_state(before)
            return None
        h = torch.stack([operator.layout.row(x) for x in solutions]).mul_(solving.scale)
        start = 0
        for updates in history.tolist():
            stop = min(start + batch_size, n)
            operator.count((stop - start) * len(progress.active))
            progress.note(updates, h)
            start = stop % n
            if not progress.active:
                break
        return h

    def _device_loop(
        self, progress: _Progress, h: Tensor, damping: float, batch_size: int, generator: torch.Generator
    ) -> None:
        """The run, or its beginning, on a device that need not wait for the host."""
        operator = progress.solving.operator
        data = operator.resident() if can_capture(h.device) else None
        if data is None:
            return
        before = generator.get_state()
        iterate_on_device(progress, Batches(operator, data, batch_size, generator), h, damping)
        if not progress.over:
            generator.set_state(before)

    def _host_loop(
        self, progress: _Progress, h: Tensor, damping: float, batch_size: int, generator: torch.Generator
    ) -> None:
        """What is left of the run."""
        operator, v, scale = progress.solving.operator, progress.solving.v, progress.solving.scale
        layout = operator.layout
        for batch in itertools.islice(operator.minibatches(batch_size, generator), progress.iteration, None):
            active = progress.active
            products = batch.curvature([layout.split(h[k]) for k in active])
            steps = [
                lissa_step_(layout.split(h[k], wide=True), layout.split(v[k], wide=True), product, damping, scale)
                for k, product in zip(active, products, strict=True)
            ]
            updates = [math.nan] * len(v)
            for k, update in zip(active, broadcast_(torch.stack(steps)).tolist(), strict=True):
                updates[k] = update
            progress.note(updates, h)
            if progress.over:
                break


class _Progress:
    """Which right-hand sides of a run go on, what it has taken and why it ended."""

    def __init__(self, solving: _Solving, runs: list[_Run], tolerance: float, depth: int):
        self.solving, self.runs, self.tolerance, self.depth = solving, runs, tolerance, depth
        self.active = list(range(len(runs)))
        self.iteration = 0
        solving.stopped = f"reached {depth} iterations"

    @property
    def over(self) -> bool:
        """Whether no right-hand side goes on."""
        return not self.active or self.iteration >= self.depth

    def note(self, updates: list[float], h: Tensor) -> bool:
        """Take note of the updates of an iteration, NaN where there was none, which have led to `h`.

        Returns whether some were as small as a right-hand side waits for, and the residual of h has decided.
        """
        self.iteration += 1
        self.solving.iterations += len(self.active)
        self.solving.history.append(updates)
        reasons = {k: self.runs[k].reason_to_stop(updates[k]) for k in self.active}
        small = [k for k in self.active if reasons[k] == CONVERGED]
        if small:
            for k, residual in zip(small, self.solving.residuals(h[small] / self.solving.scale, small), strict=True):
                if residual > self.tolerance:  # it is the updates' L1 norm that is small, not their L2 norm
                    self.runs[k].enough = updates[k] * self.tolerance / residual / 2
                    reasons[k] = None
        self.active = [k for k in self.active if reasons[k] is None]
        if not self.active:
            self.solving.stopped = f"{reasons.popitem()[1]} at iteration {self.iteration}"
        return bool(small)


class _Run:
    """When to stop, from the updates of one right-hand side: the published rule, or an update of at most `enough`.

    The rule is that of csrc/common/patience.h.
    """

    def __init__(self, enough: float, patience: int):
        self.enough, self.patience = enough, patience
        self.smallest, self.since_smallest = math.inf, 0

    def reason_to_stop(self, update: float) -> str | None:
        """Why the run is over after an update of this size, or None."""
        if not math.isfinite(update):
            return "not finite"
        if update <= self.enough:
            return CONVERGED
        if update > self.smallest and self.since_smallest >= self.patience:
            return "updates no longer shrank"
        if update < self.smallest:
            self.smallest, self.since_smallest = update, 1
        self.since_smallest += 1
        return None
