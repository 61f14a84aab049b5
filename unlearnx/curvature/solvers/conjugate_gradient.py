"""Conjugate gradients for one or many right-hand sides at once, with or without a preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one
from unlearnx._distributed import broadcast_
from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solver, _Solving


@dataclass(kw_only=True)
class ConjugateGradient(Solver):
    """Block conjugate gradients: K right-hand sides share their search directions.

    Directions that depend on others are left out, so that right-hand sides may be equal, or done at different times.

    Args:
        iterations: most iterations, each with a product for every right-hand side that is not done.
        tolerance: relative residual to stop at.

    Source: O'Leary, "The block conjugate gradient algorithm and related methods", 1980; in the form of Ji and Li,
    "A breakdown-free block conjugate gradient method", BIT 2017.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> ConjugateGradient(tolerance=1e-3).solve(operator, v).converged
        True
    """

    iterations: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(iterations=self.iterations)

    def _solve(self, solving: _Solving) -> None:
        self._iterate(solving, lambda rows: rows)

    def _iterate(self, solving: _Solving, precondition: Callable[[Tensor], Tensor]) -> None:
        residuals = solving.v.clone()
        open_ = (solving.norms > 0).nonzero().flatten()
        directions = _orthonormal(precondition(residuals[open_]))
        if not len(open_):
            return
        for iteration in range(1, self.iterations + 1):
            images = solving.products(directions)
            energy = broadcast_((directions @ images.T).double())
            if not energy.isfinite().all():
                solving.stopped = f"the product is not finite at iteration {iteration}"
                return
            factor, failed = torch.linalg.cholesky_ex((energy + energy.T) / 2)
            if failed:
                self._refuse(solving, float(torch.linalg.eigvalsh(energy)[0]))
            steps = torch.cholesky_solve((directions @ residuals.T).double(), factor).to(directions)
            solving.x += steps.T @ directions
            residuals -= steps.T @ images
            relative = solving.relative(residuals)
            solving.history.append(relative.tolist())
            if not relative.isfinite().all():
                solving.stopped = f"not finite at iteration {iteration}"
                return
            open_ = (relative > self.tolerance).nonzero().flatten()
            if not len(open_):
                solving.stopped = f"converged at iteration {iteration}"
                return
            following = precondition(residuals[open_])
            overlap = torch.cholesky_solve((images @ following.T).double(), factor).to(directions)
            directions = _orthonormal(following - overlap.T @ directions)
        solving.stopped = f"reached {self.iterations} iterations"

    def _refuse(self, solving: _Solving, quotient: float) -> None:
        spectrum = solving.operator.spectrum(iterations=200, tolerance=1e-3, generator=torch.Generator().manual_seed(0))
        eigenvalue = min(quotient, spectrum.smallest)
        raise IndefiniteSystem(self, solving.operator, eigenvalue, spectrum.largest, spectrum.smallest_error)


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, of as many rows as are independent of each other.

    What is smaller than the root of the precision is rounding for the most part: it is not conjugate to anything.
    """
    norms = broadcast_(rows.norm(dim=1, keepdim=True))
    rows = rows[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if len(rows) <= 1:
        return rows
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[broadcast_(values) > torch.finfo(rows.dtype).eps ** 0.5 * values[0]]


@dataclass(kw_only=True)
class NystromPCG(ConjugateGradient):
    """Conjugate gradients preconditioned by a random low-rank approximation of the curvature.

    The operator needs a damping, or there is nothing to balance the approximation with.

    Args:
        rank: of the approximation, as many products before the first iteration and as many vectors in memory.
        iterations, tolerance: as for :class:`ConjugateGradient`.
        seed: of the approximation.

    Source: Frangella, Tropp and Udell, "Randomized Nystrom preconditioning", SIMAX 2023, algorithms 2.1 and 5.1.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(8, *p.shape) for name, p in model.named_parameters()}  # eight right-hand sides
        >>> NystromPCG(rank=5).solve(operator, v).residual.shape
        torch.Size([8])
    """

    rank: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)

    def _solve(self, solving: _Solving) -> None:
        damping = solving.operator.damping
        if not damping > 0:
            raise ValueError("NystromPCG: the operator's damping is 0, expected a number > 0")
        basis, values = self._approximation(solving)
        if not len(values):
            return self._iterate(solving, lambda rows: rows)
        weights = ((values[-1] + damping) / (values + damping) - 1).to(basis)
        return self._iterate(solving, lambda rows: rows + (rows @ basis.T * weights) @ basis)

    def _approximation(self, solving: _Solving) -> tuple[Tensor, Tensor]:
        """Orthonormal rows U (r, P) and values (r,), descending, with ``C ~ U^T diag(values) U``, undamped."""
        size = solving.v.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        test = broadcast_(torch.randn(min(self.rank, size), size, generator=generator).to(solving.v))
        test = torch.linalg.qr(test.T)[0].T.contiguous()
        images = solving.products(test).sub_(test, alpha=solving.operator.damping)
        shift = torch.finfo(images.dtype).eps * float(images.norm())
        images.add_(test, alpha=shift)
        energy = broadcast_((test @ images.T).double())
        factor, failed = torch.linalg.cholesky_ex((energy + energy.T) / 2)
        if failed or not factor.isfinite().all():  # negative, or not finite: conjugate gradients will tell
            return test[:0], energy[0, :0]
        half = torch.linalg.solve_triangular(factor.to(images), images, upper=False)
        _, singular, basis = torch.linalg.svd(half, full_matrices=False)
        return basis, (singular.double().square() - shift).clamp(min=0)
