"""Directions that solve a linear system with the curvature."""

from __future__ import annotations

from typing import Any

from unlearnx._batches import nbytes
from unlearnx._data import Data
from unlearnx._sources import Samples
from unlearnx._vectors import Vector
from unlearnx.curvature import CurvatureOperator, IndefiniteSystem
from unlearnx.curvature.solvers import Solution, Solver
from unlearnx.methods.base import Method, NotApplied, Work

SMALL_BATCH, SMALL_BATCH_BYTES = 1024, 32 << 20  # most samples of a batch that is larger than asked for, and its size


def check_solver(solver: Solver) -> None:
    """Refuse a `solver` that is not a Solver."""
    if not isinstance(solver, Solver):
        raise ValueError(f"solver is {solver!r}, expected a Solver such as LiSSA() or ConjugateGradient()")


def curvature_batch(method: Method, data: Data) -> int:
    """Samples per pass of a product with the curvature: many where they are small, as features are."""
    fitting = SMALL_BATCH_BYTES // max(1, nbytes(Samples(data).read(slice(0, 1))))
    return max(method.batch_size, min(SMALL_BATCH, fitting))


def solved_direction(
    solver: Solver, operator: CurvatureOperator, difference: Vector, work: Work, record: dict[str, Any]
) -> Vector:
    """The direction ``operator^-1 difference``; adds its cost to `work` and the solver's results to `record`.

    Raises:
        NotApplied: the solver diverged, or the matrix is not positive definite.
    """
    try:
        solution = solver.solve(operator, difference)
    except IndefiniteSystem as reason:
        raise NotApplied(str(reason)) from reason
    work.gradient_evaluations += operator.evaluations
    return checked_direction(solver, solution, record)


def checked_direction(solver: Solver, solution: Solution, record: dict[str, Any]) -> Vector:
    """The solution's direction; adds residual, convergence and iterations to `record`.

    Raises:
        NotApplied: the solver diverged.
    """
    record.update(
        residual=solution.residual,
        converged=solution.converged,
        iterations=solution.iterations,
        solver=solution.stopped,
        scale=solution.scale,
    )
    if solution.diverged:
        raise NotApplied(f"{type(solver).__name__} diverged: {solution.stopped}, residual {solution.residual:.3g}")
    return solution.x
