"""Linear-time stochastic second-order iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one
from unlearnx._distributed import of_first_
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
        operator, layout, v, scale = solving.operator, solving.operator.layout, solving.v, solving.scale
        damping = self.damping + operator.damping / scale  # the operator's own at no cost
        batch_size = min(self.batch_size or len(operator), len(operator))
        depth = self._depth(solving, math.ceil(len(operator) / batch_size))
        enough = self.tolerance / 2 if self.scale == "auto" and batch_size == len(operator) else 0.0
        runs = [_Run(size, self.patience) for size in (enough * v.abs().sum(1)).tolist()]
        h = v.clone()
        active = list(range(len(v)))
        solving.stopped = f"reached {depth} iterations"
        for iteration, batch in zip(range(depth), operator.minibatches(batch_size, generator), strict=False):
            products = batch.curvature([layout.split(h[k]) for k in active])
            solving.iterations += len(active)
            updates = [math.nan] * len(v)
            steps = [
                lissa_step_(layout.split(h[k], wide=True), layout.split(v[k], wide=True), product, damping, scale)
                for k, product in zip(active, products, strict=True)
            ]
            for k, update in zip(active, of_first_(torch.stack(steps)).tolist(), strict=True):
                updates[k] = update
            solving.history.append(updates)
            reasons = {k: runs[k].reason_to_stop(updates[k]) for k in active}
            small = [k for k in active if reasons[k] == CONVERGED]
            if small:
                for k, residual in zip(small, solving.residuals(h[small] / scale, small), strict=True):
                    if residual > self.tolerance:  # it is the updates' L1 norm that is small, not their L2 norm
                        runs[k].enough = updates[k] * self.tolerance / residual / 2
                        reasons[k] = None
            active = [k for k in active if reasons[k] is None]
            if not active:
                solving.stopped = f"{reasons.popitem()[1]} at iteration {iteration + 1}"
                break
        return h


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
