"""The dense matrix, for a few thousand parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solver, _Solving

ROWS = 32  # products at once
LARGEST = 1 << 14  # parameters: 2 GiB in float64, and twice as much again while it is solved


@dataclass
class Direct(Solver):
    """The whole matrix in float64, by a product for each parameter, and its Cholesky factor.

    Args:
        tolerance: residual at which a solution counts as converged.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> Direct().solve(operator, v).residual < 1e-4
        True
    """

    def _solve(self, solving: _Solving) -> None:
        size = solving.v.shape[1]
        if size > LARGEST:
            raise ValueError(
                f"Direct: {size:,} parameters make a matrix of {size * size * 8 / 2**30:.3g} GiB, expected at most "
                f"{LARGEST:,} parameters; ConjugateGradient takes any number"
            )
        matrix = torch.empty(size, size, dtype=torch.float64, device=solving.v.device)
        for start in range(0, size, ROWS):
            rows = torch.zeros(min(ROWS, size - start), size).to(solving.v)
            rows[:, start:].fill_diagonal_(1)
            matrix[start : start + ROWS] = solving.products(rows)
        if not matrix.isfinite().all():
            solving.stopped = "the product is not finite"
            return
        matrix = (matrix + matrix.T) / 2
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            values = torch.linalg.eigvalsh(matrix)
            raise IndefiniteSystem(self, solving.operator, float(values[0]), float(values[-1]))
        solving.x = torch.cholesky_solve(solving.v.double().T, factor).T.to(solving.v)
        solving.stopped = "solved"
