"""Solvers and Kronecker factors, in the same methods at the same damping, on three studies beside retraining."""
