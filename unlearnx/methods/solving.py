"""Directions that solve a linear system with the curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unlearnx._batches import nbytes
from unlearnx._data import Data
from unlearnx._sources import Samples
from unlearnx._vectors import Vector
from unlearnx.curvature import CurvatureOperator, IndefiniteSystem
from unlearnx.curvature.solvers import Solution, Solver
from unlearnx.curvature.spectrum import NotFinite
from unlearnx.methods.base import Method, NotApplied, Work

DAMPING = 1e-2  # in units of the largest eigenvalue, where none is given
SMALL_BATCH, SMALL_BATCH_BYTES = 1024, 32 << 20  # most samples of a batch that is larger than asked for, and its size


def check_solver(solver: Solver, damping: float | None) -> None:
    """Refuse a `solver` that is not a Solver, and a damping of 0 where it needs one."""
    if not isinstance(solver, Solver):
        raise ValueError(f"solver is {solver!r}, expected a Solver such as LiSSA() or ConjugateGradient()")
    if damping == 0 and solver.needs_damping:
        raise ValueError(f"damping is {damping!r}, expected a number above zero, or None, for {type(solver).__name__}")


def damping_of(given: float | None, largest: Callable[[], float]) -> float:
    """The damping that is given, or for none a hundredth of the largest eigenvalue of the curvature.

    Raises:
        NotApplied: that is not above zero.
    """
    damping = DAMPING * largest() if given is None else given
    if not damping > 0:
        raise NotApplied("the curvature of what stays is zero: the model is sure of all samples")
    return damping


def curvature_operator(
    method: Method, solver: Solver, model: nn.Module, names: list[str], data: Data, kind: str, damping: float | None
) -> CurvatureOperator:
    """The matrix for a method's solver. A damping of None is 0, or as :func:`damping_of` says where it needs one.

    Raises:
        NotApplied: there is no such damping.
    """
    batch_size = curvature_batch(method, data)
    operator = CurvatureOperator(
        model, method.loss_fn, data, kind=kind, damping=damping or 0.0, params=names, batch_size=batch_size
    )
    if damping is None and solver.needs_damping:
        generator = torch.Generator().manual_seed(method.seed)
        try:
            operator.rows.damping = damping_of(None, lambda: operator.top_eigenvalue(generator=generator))
        except NotFinite as reason:
            raise NotApplied(str(reason)) from reason
    return operator


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
