"""Solves with the dense curvature matrix, for a few thousand parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solver
from unlearnx.curvature.solvers.system import System

PRODUCTS_AT_ONCE = 32
MAX_PARAMETERS = 1 << 14  # a matrix of 2 GiB in float64, and twice as much again while the system is solved


@dataclass
class Direct(Solver):
    """Computes the whole matrix in float64, one product per entry of the parameters, and its Cholesky factor.

    Args:
        tolerance: residual at which a solution counts as converged.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> Direct().solve(operator, v).residual < 1e-4
        True
    """

    def _solve(self, system: System) -> None:
        size = system.v.shape[1]
        if size > MAX_PARAMETERS:
            raise ValueError(
                f"Direct: {size:,} parameters make a matrix of {size * size * 8 / 2**30:.3g} GiB, expected at most "
                f"{MAX_PARAMETERS:,} parameters; ConjugateGradient takes any number"
            )
        matrix = torch.empty(size, size, dtype=torch.float64, device=system.v.device)
        for start in range(0, size, PRODUCTS_AT_ONCE):
            rows = torch.zeros(min(PRODUCTS_AT_ONCE, size - start), size).to(system.v)
            rows[:, start:].fill_diagonal_(1)
            matrix[start : start + PRODUCTS_AT_ONCE] = system.products(rows)
        if not matrix.isfinite().all():
            system.stopped = "the product is not finite"
            return
        matrix = (matrix + matrix.T) / 2
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            values = torch.linalg.eigvalsh(matrix)
            raise IndefiniteSystem(self, system.operator, float(values[0]), float(values[-1]))
        system.x = torch.cholesky_solve(system.v.double().T, factor).T.to(system.v)
        system.stopped = "solved"
