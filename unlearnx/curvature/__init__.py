"""Gradients of sets, Fisher diagonals, curvature operators and solvers."""

from unlearnx.curvature.fisher import fisher_diagonal
from unlearnx.curvature.gradients import grad_difference, per_sample_grad_difference
from unlearnx.curvature.kfac import EKFAC, KFAC, Factors
from unlearnx.curvature.operators import CurvatureOperator
from unlearnx.curvature.per_sample_dot import per_sample_grad_dot
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.rules import register_rule
from unlearnx.curvature.solvers import ConjugateGradient, Direct, IndefiniteSystem, LiSSA, NystromPCG, Solution, Solver
from unlearnx.curvature.spectrum import Spectrum

__all__ = [
    "EKFAC",
    "KFAC",
    "ConjugateGradient",
    "CurvatureOperator",
    "Direct",
    "Factors",
    "FrozenPrefix",
    "IndefiniteSystem",
    "LiSSA",
    "NystromPCG",
    "Solution",
    "Solver",
    "Spectrum",
    "fisher_diagonal",
    "grad_difference",
    "per_sample_grad_difference",
    "per_sample_grad_dot",
    "register_rule",
]
