"""LiSSA, the linear-time stochastic second-order algorithm."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unlearnx._checks import LARGEST, check_at_least_one
from unlearnx._distributed import broadcast_
from unlearnx.curvature.rows import CurvatureRows
from unlearnx.curvature.solvers.cuda_graph import can_capture
from unlearnx.curvature.solvers.lissa_on_device import Batches, iterate_on_device
from unlearnx.curvature.solvers.preconditioner import (
    ApproximateInverse,
    Preconditioner,
    approximate_inverse,
)
from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solver
from unlearnx.curvature.solvers.stopping import Progress, StoppingRule
from unlearnx.curvature.solvers.system import System
from unlearnx.curvature.spectrum import NotFinite, lanczos
from unlearnx.ops.lissa_step import lissa_step_

DAMPING = 1e-2  # where none is given
MAX_SCALES_TRIED = 5  # by scale="auto"
SCALE_GROWTH = 4.0  # factor from one of these scales to the next
MAX_AUTO_ITERATIONS = 10_000  # by recursion_depth=None, where 100 passes over the data are not more


@dataclass
class LiSSA(Solver):
    """Linear-time stochastic second-order iteration ``h <- v + (1 - damping) h - C h / scale``, x = h / scale.

    It solves ``(C + damping * scale * I) x = v`` where ``scale`` exceeds half the largest eigenvalue of C, which
    includes the operator's own damping.

    On a GPU iterations run as replays of a CUDA graph, and the host reads the updates every few iterations. A smaller
    last batch of a pass over the data runs without the graph. No graph is used where processes share the work, under
    autocast, where the data are not tensors, or where they are on another device than the model and take more than a
    third of its free memory. Where the model cannot be captured, because it waits for the device or copies from the
    host, a warning says so and the host reads every update.

    Args:
        damping: coefficient of the iteration, without unit; as a Tikhonov term it is ``damping * scale``. None for
            1e-2, or for 0 with a preconditioner.
        scale: in units of the curvature, or ``"auto"`` for 1.1 times the largest eigenvalue over all the data. The
            largest eigenvalue of a batch may be far larger: a run that diverges is repeated with four times the scale,
            at most four times.
        batch_size: samples per product; None for all of them.
        recursion_depth: most iterations; None for 100 passes over the data, as published; with ``scale="auto"`` for
            more where its rate of convergence needs more, up to 10,000 iterations.
        num_repeat: independent runs to average.
        preconditioner: ``EKFAC()``, ``KFAC()`` or ``Factors``, as for :class:`ConjugateGradient`: an approximate
            inverse P of the system's matrix A, with which the iteration is ``h <- h + P (v - A h / scale)``. The scale
            is that of ``P A``, and there is no `damping` but the operator's own, which must be > 0. None for none.
        patience: a run ends at an update larger than the smallest so far, once that is this many iterations ago, as
            published.
        seed: seed of the order of the samples.
        tolerance: residual at which a solution counts as converged. With ``scale="auto"`` and products over all
            the data, where the updates are residuals, the iteration stops there.

    Source: Agarwal, Bullins and Hazan, JMLR 2017; stopping rule of Warnecke et al., NDSS 2023, public code.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> solution = LiSSA(damping=0.0, batch_size=None).solve(operator, v)  # scale found from the spectrum
        >>> solution.converged, solution.scale > 0
        (True, True)
    """

    damping: float | None = None
    scale: float | str = "auto"
    batch_size: int | None = 1024
    recursion_depth: int | None = None
    num_repeat: int = 1
    patience: int = 20
    seed: int = 0
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale != "auto" and not (isinstance(self.scale, (int, float)) and 0 < self.scale <= LARGEST):
            raise ValueError(f"scale is {self.scale!r}, expected a finite number > 0 or 'auto'")
        if self.damping is not None and not 0 <= self.damping < 1:
            raise ValueError(f"damping is {self.damping}, expected a number in [0, 1), or None")
        if self.preconditioner is not None and self.damping:
            raise ValueError(
                f"damping is {self.damping}, expected 0 with a preconditioner, which takes the operator's damping"
            )
        check_at_least_one(
            batch_size=self.batch_size,
            recursion_depth=self.recursion_depth,
            num_repeat=self.num_repeat,
            patience=self.patience,
        )

    @property
    def needs_damping(self) -> bool:
        """A preconditioner does."""
        return self.preconditioner is not None

    @property
    def _damping(self) -> float:
        if self.damping is None:
            return DAMPING if self.preconditioner is None else 0.0
        return self.damping

    def _solve(self, system: System) -> Tensor | None:
        if not system.norms.any():
            return None
        generator = torch.Generator().manual_seed(self.seed)
        inverse = None
        if self.preconditioner is not None:
            inverse = approximate_inverse(self.preconditioner, "LiSSA", system)
        try:
            system.scale = self._scale(system, generator, inverse)
        except NotFinite as reason:
            system.stopped = str(reason)
            return None
        for attempt in range(MAX_SCALES_TRIED if self.scale == "auto" else 1):
            system.scale *= SCALE_GROWTH if attempt else 1
            system.extra_damping = self._damping * system.scale
            system.x = self._average(system, generator, inverse)
            residual = system.residuals(system.x)
            if bool((residual < 1).all()):
                break
        return residual

    def _scale(self, system: System, generator: torch.Generator, inverse: ApproximateInverse | None) -> float:
        if self.scale != "auto":
            return float(self.scale)
        if inverse is None:
            spectrum = system.operator.spectrum(generator=generator)
        else:
            start = broadcast_(torch.randn(system.v.shape[1], generator=generator).to(system.v))
            spectrum = lanczos(partial(_between_roots, inverse, system.operator), start, 50, 1e-2)
        system.iterations += spectrum.iterations
        scale = 1.1 * spectrum.largest if spectrum.largest > 0 else 1.0  # no curvature: any scale will do
        eigenvalue = spectrum.smallest + self._damping * scale
        if eigenvalue < -1e-6 * abs(spectrum.largest):  # the true smallest eigenvalue is at most this estimate
            raise IndefiniteSystem(self, system.operator, eigenvalue, spectrum.largest, spectrum.smallest_error)
        return scale

    def _depth(self, system: System, batches: int) -> int:
        if self.recursion_depth is not None:
            return self.recursion_depth
        depth = 100 * batches
        rate = (
            self._damping + system.operator.damping / system.scale
        )  # per iteration, of the slowest component of the error
        if self.scale == "auto" and rate > 0:
            depth = max(depth, math.ceil(math.log(2 / self.tolerance) / rate))
        return min(depth, max(100 * batches, MAX_AUTO_ITERATIONS))

    def _average(self, system: System, generator: torch.Generator, inverse: ApproximateInverse | None) -> Tensor:
        x = torch.zeros_like(system.v)
        for _ in range(self.num_repeat):
            x.add_(self._run(system, generator, inverse), alpha=1 / (system.scale * self.num_repeat))
            if not x.isfinite().all():
                break
        return x

    def _run(self, system: System, generator: torch.Generator, inverse: ApproximateInverse | None) -> Tensor:
        operator = system.operator
        batch_size = min(self.batch_size or len(operator), len(operator))
        depth = self._depth(system, math.ceil(len(operator) / batch_size))
        update_target = self.tolerance / 2 if self.scale == "auto" and batch_size == len(operator) else 0.0
        first = system.v if inverse is None else inverse(system.v)
        rules = [StoppingRule(size, self.patience) for size in (update_target * first.abs().sum(1)).tolist()]
        progress = Progress(system, rules, self.tolerance, depth)
        if inverse is not None:
            return self._preconditioned_loop(progress, first, inverse, batch_size, generator)
        damping = self._damping + operator.damping / system.scale  # the operator's damping, added without a product
        if not update_target and system.norms.all():
            h = self._closed_form(progress, damping, batch_size, generator)
            if h is not None:
                return h
        h = system.v.clone()
        self._device_loop(progress, h, damping, batch_size, generator)
        if not progress.over:
            self._host_loop(progress, h, damping, batch_size, generator)
        return h

    def _closed_form(
        self, progress: Progress, damping: float, batch_size: int, generator: torch.Generator
    ) -> Tensor | None:
        """The whole run by the op for softmax regression, which knows the published stopping rule only; else None."""
        system, operator = progress.system, progress.system.operator
        regression = operator.softmax_regression()
        if regression is None:
            return None
        before, n = generator.get_state(), len(operator)
        solutions, history = regression.lissa(
            [operator.layout.split(row) for row in system.v],
            damping=damping,
            scale=system.scale,
            batch_size=batch_size,
            iterations=progress.depth,
            patience=self.patience,
            order=operator.shuffled(generator).to(system.v.device) if batch_size < n else None,
        )
        if bool((history == 0).any()):  # an update of zero: the residual must decide, which the op does not compute
            generator.set_state(before)
            return None
        h = torch.stack([operator.layout.row(x) for x in solutions]).mul_(system.scale)
        start = 0
        for updates in history.tolist():
            stop = min(start + batch_size, n)
            operator.count((stop - start) * len(progress.active))
            progress.record(updates, h)
            start = stop % n
            if not progress.active:
                break
        return h

    def _device_loop(
        self, progress: Progress, h: Tensor, damping: float, batch_size: int, generator: torch.Generator
    ) -> None:
        """The run, or its first iterations, on a GPU that does not wait for the host."""
        operator = progress.system.operator
        data = operator.samples_on_device() if can_capture(h.device) else None
        if data is None:
            return
        before = generator.get_state()
        iterate_on_device(progress, Batches(operator, data, batch_size, generator), h, damping)
        if not progress.over:
            generator.set_state(before)

    def _host_loop(
        self, progress: Progress, h: Tensor, damping: float, batch_size: int, generator: torch.Generator
    ) -> None:
        """The remaining iterations, with every update read by the host."""
        operator, v, scale = progress.system.operator, progress.system.v, progress.system.scale
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
            progress.record(updates, h)
            if progress.over:
                break

    def _preconditioned_loop(
        self,
        progress: Progress,
        first: Tensor,
        inverse: ApproximateInverse,
        batch_size: int,
        generator: torch.Generator,
    ) -> Tensor:
        """The run with a preconditioner; `first` is ``P v``."""
        system, h = progress.system, first.clone()
        for batch in system.operator.minibatches(batch_size, generator):
            active = progress.active
            update = inverse(system.v[active] - batch.products(h[active] / system.scale))
            h[active] += update
            updates = [math.nan] * len(h)
            for k, size in zip(active, broadcast_(update.abs().sum(1)).tolist(), strict=True):
                updates[k] = size
            progress.record(updates, h)
            if progress.over:
                break
        return h


def _between_roots(inverse: ApproximateInverse, operator: CurvatureRows, row: Tensor) -> Tensor:
    """``P^1/2 A P^1/2`` of a vector (P,): symmetric, with the eigenvalues of ``P A``."""
    return inverse.root(operator.products(inverse.root(row[None])))[0]
