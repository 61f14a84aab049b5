"""Inverse-curvature products, with the residual that tells how far they got."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from unlearnx._vectors import Vector, added, check_like, norm
from unlearnx.curvature.operators import CurvatureOperator
from unlearnx.curvature.samples import split_values
from unlearnx.ops.lissa_step import lissa_step_

ATTEMPTS = 5  # scales that "auto" tries
GROWTH = 4.0  # from one of them to the next


@dataclass
class Solution:
    """What a solver found for ``(C + lambda I) x = b``.

    Attributes:
        x: the estimate, a tensor for each parameter.
        iterations: curvature products taken on the way, those of diverged attempts included.
        residual: ``||(C + lambda I) x - b|| / ||b||`` over all of the operator's data: 0 is exact, 1 is no better
            than x = 0; NaN or infinite where the iteration overflowed.
        converged: the residual is at most the solver's tolerance.
        history: L1 norms of the changes of the estimate, one an iteration.
        scale: LiSSA's scale, as given or found; 0 where there was nothing to solve.
    """

    x: Vector
    iterations: int
    residual: float
    converged: bool
    history: list[float] = field(repr=False)
    scale: float

    @property
    def diverged(self) -> bool:
        """The estimate is not finite, or worse than none. It must not be applied."""
        return not self.residual < 1


@dataclass
class LiSSA:
    """Linear-time stochastic second-order iteration ``h <- v + (1 - damping) h - C h / scale``, x = h / scale.

    It solves ``(C + damping * scale * I) x = v`` where ``scale`` exceeds half the largest eigenvalue.

    Args:
        damping: coefficient of the iteration, without unit; as a Tikhonov term it is ``damping * scale``.
        scale: in units of the curvature, or ``"auto"`` for 1.1 times the largest eigenvalue over all the data. Batches
            may have far larger ones: a run that diverges for that is repeated with four times the scale, and so on.
        batch_size: samples in one product; None for all of them.
        recursion_depth: most iterations; None for 100 passes over the data, as published.
        num_repeat: independent runs to average.
        patience: iterations without a smaller update after which a larger one ends a run, as published.
        tolerance: residual at which a solution counts as converged.
        seed: of the order of the samples.

    Source: Agarwal, Bullins and Hazan, JMLR 2017; stopping rule of Warnecke et al., NDSS 2023, public code.
    """

    damping: float = 1e-2
    scale: float | str = "auto"
    batch_size: int | None = 1024
    recursion_depth: int | None = None
    num_repeat: int = 1
    patience: int = 20
    tolerance: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scale != "auto" and not (isinstance(self.scale, (int, float)) and 0 < self.scale < math.inf):
            raise ValueError(f"scale is {self.scale!r}, expected a number > 0 or 'auto'")
        if not 0 <= self.damping < 1:
            raise ValueError(f"damping is {self.damping}, expected a number in [0, 1)")
        for name in ("batch_size", "recursion_depth", "num_repeat", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")

    def solve(self, operator: CurvatureOperator, v: Vector) -> Solution:
        """Solve ``(C + damping * scale * I) x = v``; a run that overflows ends there, and the residual says so.

        Raises:
            ValueError: keys or shapes of `v` are not those of the operator's parameters.
        """
        check_like("v", v, split_values(operator.model, operator.names)[0])
        size = norm(v)
        if size == 0:
            return Solution({k: torch.zeros_like(t) for k, t in v.items()}, 0, 0.0, True, [], 0.0)
        generator = torch.Generator().manual_seed(self.seed)
        scale = self._scale(operator, generator)
        history: list[float] = []
        for attempt in range(ATTEMPTS if self.scale == "auto" else 1):
            scale *= GROWTH if attempt else 1
            x = self._average(operator, v, scale, history, generator)
            image = added(operator.matvec(x), x, self.damping * scale)
            residual = norm(added(image, v, -1.0)) / size
            solution = Solution(x, len(history), residual, residual <= self.tolerance, history, scale)
            if not solution.diverged:
                break
        return solution

    def _scale(self, operator: CurvatureOperator, generator: torch.Generator) -> float:
        if self.scale != "auto":
            return float(self.scale)
        top = operator.top_eigenvalue(generator=generator)
        return 1.1 * top if top > 0 else 1.0  # without positive curvature there is no scale to speak of

    def _average(
        self, operator: CurvatureOperator, v: Vector, scale: float, history: list[float], generator: torch.Generator
    ) -> Vector:
        x = {name: torch.zeros_like(t) for name, t in v.items()}
        for _ in range(self.num_repeat):
            x = added(x, self._run(operator, v, scale, history, generator), 1 / (scale * self.num_repeat))
            if not math.isfinite(history[-1]):
                break
        return x

    def _run(
        self,
        operator: CurvatureOperator,
        v: Vector,
        scale: float,
        history: list[float],
        generator: torch.Generator,
    ) -> Vector:
        batch_size = min(self.batch_size or len(operator), len(operator))
        depth = self.recursion_depth or 100 * math.ceil(len(operator) / batch_size)
        h = {name: t.clone() for name, t in v.items()}
        smallest, since_smallest = math.inf, 0
        for _, batch in zip(range(depth), operator.minibatches(batch_size, generator), strict=False):
            product = batch.matvec(h)
            update = float(
                lissa_step_(list(h.values()), list(v.values()), [product[k] for k in h], self.damping, scale)
            )
            history.append(update)
            if not math.isfinite(update) or (update > smallest and since_smallest >= self.patience):
                break
            if update < smallest:
                smallest, since_smallest = update, 1
            since_smallest += 1
        return h
