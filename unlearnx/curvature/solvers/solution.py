"""What all solvers have in common: the system, the answer and its certificate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearnx._distributed import broadcast_
from unlearnx._vectors import Vector
from unlearnx.curvature.operators import CurvatureOperator

Sides = slice | list[int]  # some of the right-hand sides


class IndefiniteSystem(ValueError):
    """The system has no positive definite matrix, and its solution would be no minimum of anything.

    Attributes:
        eigenvalue: the smallest that was found, damping included.
        damping: of the operator, with which the system would be positive definite.

    Example:
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 3
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), kind="hessian")
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> try:
        ...     Direct().solve(operator, v)
        ... except IndefiniteSystem as error:
        ...     print(error.eigenvalue < 0 < error.damping)
        True
    """

    def __init__(
        self, solver: object, operator: CurvatureOperator, eigenvalue: float, largest: float, error: float = 0.0
    ):
        self.eigenvalue = eigenvalue
        self.damping = operator.damping + max(1.1 * (error - eigenvalue), 1e-6 * largest, 1e-12)
        super().__init__(
            f"{type(solver).__name__}: the system is not positive definite, it has the eigenvalue {eigenvalue:.4g}; "
            f"with damping={self.damping:.4g} in place of {operator.damping:.4g} it would be, and kind='ggn' has no "
            "negative eigenvalues"
        )


@dataclass
class Solution:
    """What a solver found for ``A x = v``, A being the damped curvature.

    Where v holds K right-hand sides, so does x, `residual` is a tensor (K,), and the entries of `history` are lists.

    Attributes:
        x: the estimate, a tensor for each parameter.
        iterations: products with one vector taken on the way, those of diverged attempts, of the search for a scale and
            of the preconditioner included, the one for the residual not.
        residual: ``||A x - v|| / ||v||`` over all of the operator's data, by a product of its own: 0 is exact, 1 is
            no better than x = 0; NaN or infinite where the iteration overflowed.
        converged: no residual is above the solver's tolerance.
        history: a number an iteration: relative residuals; LiSSA's are the L1 norms of the estimate's changes, NaN
            for a right-hand side that was done.
        stopped: why the iteration ended; of K right-hand sides, the last that did.
        tolerance: the solver's.
        scale: LiSSA's scale, as given or found; 0 for other solvers or where there was nothing to solve.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(2, *p.shape) for name, p in model.named_parameters()}
        >>> solution = ConjugateGradient().solve(operator, v)
        >>> solution.diverged, solution.part(1).x["weight"].shape
        (False, torch.Size([3, 4]))
    """

    x: Vector
    iterations: int
    residual: Any
    converged: bool
    history: list[Any] = field(repr=False)
    stopped: str
    tolerance: float
    scale: float = 0.0

    @property
    def diverged(self) -> bool:
        """An estimate is not finite, or worse than none. It must not be applied."""
        return not bool((torch.as_tensor(self.residual) < 1).all())

    def __len__(self) -> int:
        """Number of right-hand sides."""
        return len(torch.as_tensor(self.residual).flatten())

    def part(self, k: int) -> Solution:
        """The solution of right-hand side `k` of several; `iterations` and `stopped` are those of all."""
        residual = float(self.residual[k])
        return Solution(
            {name: t[k] for name, t in self.x.items()},
            self.iterations,
            residual,
            residual <= self.tolerance,
            [entry[k] for entry in self.history],
            self.stopped,
            self.tolerance,
            self.scale,
        )


@dataclass(kw_only=True)
class Solver:
    """Solves systems with the damped curvature for one or K right-hand sides.

    Args:
        tolerance: residual at which a solution counts as converged.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> [solver.solve(operator, v).converged for solver in (ConjugateGradient(), NystromPCG(rank=5), Direct())]
        [True, True, True]
    """

    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}, expected a number between 0 and 1")

    def solve(self, operator: CurvatureOperator, v: Vector) -> Solution:
        """Solve for `v`, a tensor for each parameter, or for K of them along a first dimension.

        Raises:
            ValueError: keys or shapes of `v` are not those of the operator's parameters, or `v` is not finite.
            IndefiniteSystem: the solver met an eigenvalue that is not positive.
        """
        rows, single = operator.layout.rows("v", v)
        with operator.fixed():
            solving = _Solving(operator, rows)
            if not solving.norms.isfinite().all():
                raise ValueError("v: has values that are NaN or infinite, or too large to be squared")
            residual = self._solve(solving)
            if residual is None:
                residual = solving.residuals(solving.x)
        return Solution(
            operator.layout.vector(solving.x, single),
            solving.iterations,
            float(residual[0]) if single else residual,
            bool((residual <= self.tolerance).all()),
            [entry[0] if single else entry for entry in solving.history],
            solving.stopped,
            self.tolerance,
            solving.scale,
        )

    def _solve(self, solving: _Solving) -> Tensor | None:
        """Set ``solving.x`` and ``solving.stopped``, and count; the residuals of x where it took them."""
        raise NotImplementedError


class _Solving:
    """A system on its way to a solution; vectors are rows (K, P)."""

    def __init__(self, operator: CurvatureOperator, v: Tensor):
        self.operator, self.v = operator, v
        self.x = torch.zeros_like(v)
        self.norms = broadcast_(v.norm(dim=1)).double().cpu()
        self.extra_damping = 0.0  # LiSSA's own
        self.iterations = 0
        self.history: list[list[float]] = []
        self.stopped = "the right-hand side is zero"
        self.scale = 0.0

    def products(self, rows: Tensor) -> Tensor:
        """Counted products."""
        self.iterations += len(rows)
        return self.operator.products(rows)

    def relative(self, rows: Tensor, sides: Sides = slice(None)) -> Tensor:
        """Norms of rows relative to those of the right-hand sides, float64; where these are zero, norms."""
        norms = broadcast_(rows.norm(dim=1)).double().cpu()
        return torch.where(self.norms[sides] > 0, norms / self.norms[sides], norms)

    def residuals(self, x: Tensor, sides: Sides = slice(None)) -> Tensor:
        """Relative residuals of estimates x, by products of their own that do not count."""
        image = self.operator.products(x).add_(x, alpha=self.extra_damping)
        return self.relative(image.sub_(self.v[sides]), sides)
