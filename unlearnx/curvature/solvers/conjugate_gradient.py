"""Conjugate gradients for one or many right-hand sides, with or without a preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one
from unlearnx._distributed import broadcast_
from unlearnx.curvature.solvers.preconditioner import Preconditioner, approximate_inverse
from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solver
from unlearnx.curvature.solvers.system import System


@dataclass(kw_only=True)
class _BlockIteration(Solver):
    """What conjugate gradients with and without a preconditioner share."""

    iterations: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(iterations=self.iterations)

    def _iterate(self, system: System, precondition: Callable[[Tensor], Tensor]) -> None:
        residuals = system.v.clone()
        unsolved = (system.norms > 0).nonzero().flatten()
        directions = _orthonormal(precondition(residuals[unsolved]))
        if not len(unsolved):
            return
        for iteration in range(1, self.iterations + 1):
            images = system.products(directions)
            energy = broadcast_((directions @ images.T).double())
            if not energy.isfinite().all():
                system.stopped = f"the product is not finite at iteration {iteration}"
                return
            factor, failed = torch.linalg.cholesky_ex((energy + energy.T) / 2)
            if failed:
                self._raise_indefinite(system, float(torch.linalg.eigvalsh(energy)[0]))
            steps = torch.cholesky_solve((directions @ residuals.T).double(), factor).to(directions)
            system.x += steps.T @ directions
            residuals -= steps.T @ images
            relative_norms = system.relative_norms(residuals)
            system.history.append(relative_norms.tolist())
            if not relative_norms.isfinite().all():
                system.stopped = f"not finite at iteration {iteration}"
                return
            unsolved = (relative_norms > self.tolerance).nonzero().flatten()
            if not len(unsolved):
                system.stopped = f"converged at iteration {iteration}"
                return
            next_directions = precondition(residuals[unsolved])
            overlap = torch.cholesky_solve((images @ next_directions.T).double(), factor).to(directions)
            directions = _orthonormal(next_directions - overlap.T @ directions)
        system.stopped = f"reached {self.iterations} iterations"

    def _raise_indefinite(self, system: System, quotient: float) -> None:
        spectrum = system.operator.spectrum(iterations=200, tolerance=1e-3, generator=torch.Generator().manual_seed(0))
        eigenvalue = min(quotient, spectrum.smallest)
        raise IndefiniteSystem(self, system.operator, eigenvalue, spectrum.largest, spectrum.smallest_error)


@dataclass(kw_only=True)
class ConjugateGradient(_BlockIteration):
    """Block conjugate gradients: K right-hand sides share their search directions.

    Linearly dependent directions are left out, so that right-hand sides may be equal, or converge at different times.

    Args:
        iterations: most iterations, each with one product per right-hand side that has not converged.
        tolerance: relative residual to stop at.
        preconditioner: ``EKFAC()`` or ``KFAC()``, fitted on the operator's own data, or ``Factors`` fitted before,
            possibly on other data or of the model as it was: an approximate inverse of the matrix, with which fewer
            iterations are needed. The operator must have a damping > 0. None for none.

    Source: O'Leary, "The block conjugate gradient algorithm and related methods", 1980; in the form of Ji and Li,
    "A breakdown-free block conjugate gradient method", BIT 2017.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> operator = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1)
        >>> v = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
        >>> ConjugateGradient(tolerance=1e-3).solve(operator, v).converged
        True
    """

    preconditioner: Preconditioner | None = None

    @property
    def needs_damping(self) -> bool:
        """A preconditioner does."""
        return self.preconditioner is not None

    def _solve(self, system: System) -> None:
        if self.preconditioner is None or not system.norms.any():
            return self._iterate(system, lambda rows: rows)
        return self._iterate(system, approximate_inverse(self.preconditioner, "ConjugateGradient", system))


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span.

    Singular vectors below the square root of the precision are left out: they are mostly rounding errors, and not
    conjugate to the earlier directions.
    """
    norms = broadcast_(rows.norm(dim=1, keepdim=True))
    rows = rows[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    if len(rows) <= 1:
        return rows
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[broadcast_(values) > torch.finfo(rows.dtype).eps ** 0.5 * values[0]]


@dataclass(kw_only=True)
class NystromPCG(_BlockIteration):
    """Conjugate gradients preconditioned by a random low-rank approximation of the curvature.

    The operator must have a damping > 0: the preconditioner divides by it outside of the approximation's range.

    Args:
        rank: rank of the approximation, which takes this many products and this many vectors in memory.
        iterations, tolerance: as for :class:`ConjugateGradient`.
        seed: seed of the random test vectors of the approximation.

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

    @property
    def needs_damping(self) -> bool:
        """The preconditioner divides by it."""
        return True

    def _solve(self, system: System) -> None:
        damping = system.operator.damping
        if not damping > 0:
            raise ValueError("NystromPCG: the operator's damping is 0, expected a number > 0")
        basis, values = self._approximation(system)
        if not len(values):
            return self._iterate(system, lambda rows: rows)
        weights = ((values[-1] + damping) / (values + damping) - 1).to(basis)
        return self._iterate(system, lambda rows: rows + (rows @ basis.T * weights) @ basis)

    def _approximation(self, system: System) -> tuple[Tensor, Tensor]:
        """Orthonormal rows U (r, P) and descending values (r,) with ``U^T diag(values) U`` close to C, undamped."""
        size = system.v.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        test = broadcast_(torch.randn(min(self.rank, size), size, generator=generator).to(system.v))
        test = torch.linalg.qr(test.T)[0].T.contiguous()
        images = system.products(test).sub_(test, alpha=system.operator.damping)
        shift = torch.finfo(images.dtype).eps * float(images.norm())
        images.add_(test, alpha=shift)
        energy = broadcast_((test @ images.T).double())
        factor, failed = torch.linalg.cholesky_ex((energy + energy.T) / 2)
        if failed or not factor.isfinite().all():  # conjugate gradients will report why
            return test[:0], energy[0, :0]
        half = torch.linalg.solve_triangular(factor.to(images), images, upper=False)
        _, singular, basis = torch.linalg.svd(half, full_matrices=False)
        return basis, (singular.double().square() - shift).clamp(min=0)
