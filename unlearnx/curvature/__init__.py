"""Gradients of sets, Fisher diagonals, curvature operators and solvers."""

from unlearnx.curvature.fisher import fisher_diagonal
from unlearnx.curvature.gradients import grad_difference, per_sample_grad_difference
from unlearnx.curvature.operators import CurvatureOperator
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.solvers import LiSSA, Solution

__all__ = [
    "CurvatureOperator",
    "FrozenPrefix",
    "LiSSA",
    "Solution",
    "fisher_diagonal",
    "grad_difference",
    "per_sample_grad_difference",
]
