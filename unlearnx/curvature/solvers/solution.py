"""Solvers and their solutions, each with its residual."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unlearnx._arguments import check_fields, checked
from unlearnx._vectors import Vector
from unlearnx.curvature.operators import CurvatureOperator
from unlearnx.curvature.rows import CurvatureRows
from unlearnx.curvature.solvers.system import System


class IndefiniteSystem(ValueError):
    """The system's matrix is not positive definite: its solution would not minimise the quadratic model of the loss.

    Attributes:
        eigenvalue: the smallest eigenvalue that was found, damping included.
        damping: a damping of the operator with which the matrix would be positive definite.

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

    def __init__(self, solver: object, operator: CurvatureRows, eigenvalue: float, largest: float, error: float = 0.0):
        self.eigenvalue = eigenvalue
        self.damping = operator.damping + max(1.1 * (error - eigenvalue), 1e-6 * largest, 1e-12)
        super().__init__(
            f"{type(solver).__name__}: the system is not positive definite, it has the eigenvalue {eigenvalue:.4g}; "
            f"use damping={self.damping:.4g} instead of {operator.damping:.4g}, or kind='ggn', which has no negative "
            "eigenvalues where the loss is convex in the output"
        )


@dataclass
class Solution:
    """A solver's result for ``A x = v``, where A is the damped curvature.

    For K right-hand sides, `x` has K solutions, `residual` is a tensor (K,), and the entries of `history` are lists.

    Attributes:
        x: the estimate, a tensor for each parameter.
        iterations: products with one vector, including those of diverged attempts, of the search for a scale and of the
            preconditioner, but not the product for the residual.
        residual: ``||A x - v|| / ||v||`` over all of the operator's data, from one more product: 0 is exact, 1 is no
            better than x = 0; NaN or infinite where the iteration overflowed.
        converged: whether every residual is at most the solver's tolerance.
        history: one number per iteration: the relative residual; for LiSSA the L1 norm of the iterate's change, NaN
            for a right-hand side that had already stopped.
        stopped: why the iteration ended; for K right-hand sides, the reason of the last that stopped.
        tolerance: the solver's tolerance.
        scale: LiSSA's scale, as given or found; 0 for other solvers or where v is zero.

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
        """Whether an estimate is not finite, or no better than x = 0. It must not be applied then."""
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
        check_fields(self)
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}, expected a number between 0 and 1")

    @property
    def needs_damping(self) -> bool:
        """Whether the operator must have a damping > 0."""
        return False

    @checked
    def solve(self, operator: CurvatureOperator, v: Vector) -> Solution:
        """Solve for `v`, a tensor for each parameter, or for K of them along a first dimension.

        Raises:
            ValueError: keys or shapes of `v` are not those of the operator's parameters, or `v` is not finite.
            IndefiniteSystem: the solver found an eigenvalue that is not positive.
        """
        matrix, layout = operator.rows, operator.rows.layout
        rows, single = layout.rows("v", v)
        with matrix.fixed():
            system = System(matrix, rows)
            if not system.norms.isfinite().all():
                raise ValueError("v: has values that are NaN or infinite, or too large to be squared")
            residual = self._solve(system)
            if residual is None:
                residual = system.residuals(system.x)
        return Solution(
            layout.vector(system.x, single),
            system.iterations,
            float(residual[0]) if single else residual,
            bool((residual <= self.tolerance).all()),
            [entry[0] if single else entry for entry in system.history],
            system.stopped,
            self.tolerance,
            system.scale,
        )

    def _solve(self, system: System) -> Tensor | None:
        """Set ``system.x`` and ``system.stopped`` and count the products; return the residuals of x, or None."""
        raise NotImplementedError
