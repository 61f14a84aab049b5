"""Curvature in Kronecker factors, with eigenvalues corrected (EK-FAC) or not (K-FAC)."""

from unlearnx.curvature.kfac.factors import Factors
from unlearnx.curvature.kfac.solver import EKFAC, KFAC

__all__ = ["EKFAC", "KFAC", "Factors"]
