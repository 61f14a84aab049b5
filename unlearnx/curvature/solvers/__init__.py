"""Inverse-curvature products, with the residual that tells how far they got."""

from unlearnx.curvature.solvers.conjugate_gradient import ConjugateGradient, NystromPCG
from unlearnx.curvature.solvers.direct import Direct
from unlearnx.curvature.solvers.lissa import LiSSA
from unlearnx.curvature.solvers.solution import IndefiniteSystem, Solution, Solver

__all__ = ["ConjugateGradient", "Direct", "IndefiniteSystem", "LiSSA", "NystromPCG", "Solution", "Solver"]
