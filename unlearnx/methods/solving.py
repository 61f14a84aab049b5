"""Directions that solve a linear system with the curvature."""

from __future__ import annotations

from typing import Any

from unlearnx._vectors import Vector
from unlearnx.curvature import CurvatureOperator, IndefiniteSystem
from unlearnx.curvature.solvers import Solution, Solver
from unlearnx.methods.base import NotApplied, Work


def check_solver(solver: Solver) -> None:
    """Refuse a `solver` that is not a Solver."""
    if not isinstance(solver, Solver):
        raise ValueError(f"solver is {solver!r}, expected a Solver such as LiSSA() or ConjugateGradient()")


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
