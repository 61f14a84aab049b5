"""Solvers of linear systems with the curvature; each solution comes with its residual."""

from unlearnx.curvature.solvers.conjugate_gradient import ConjugateGradient, NystromPCG
from unlearnx.curvature.solvers.direct import Direct
from unlearnx.curvature.solvers.lissa import LiSSA
from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solution, Solver

__all__ = ["ConjugateGradient", "Direct", "IndefiniteSystem", "LiSSA", "NystromPCG", "Solution", "Solver"]
