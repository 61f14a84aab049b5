"""Approximate inverses of a system's matrix from Kronecker factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from unlearnx.curvature.rows import CurvatureRows
from unlearnx.curvature.solvers.system import System

if TYPE_CHECKING:
    from unlearnx.curvature.kfac.factors import Factors


class Preconditioner(Protocol):
    """What has, or fits, the factors of an operator: ``Factors``, ``EKFAC()`` or ``KFAC()``."""

    def factors_for(self, operator: CurvatureRows) -> tuple[Factors, int]:
        """The factors, and how many passes over the data were taken to fit them."""
        ...


class ApproximateInverse:
    """``P = (F + damping I)^-1`` of Kronecker factors F, applied to rows (K, P)."""

    def __init__(self, factors: Factors, damping: float):
        self._factors, self._damping = factors, damping

    def __call__(self, rows: Tensor) -> Tensor:
        """``P`` of the rows."""
        return self._factors.rows_applied(lambda values: 1 / (values + self._damping), rows)

    def root(self, rows: Tensor) -> Tensor:
        """``P^1/2`` of the rows."""
        return self._factors.rows_applied(lambda values: (values + self._damping).rsqrt(), rows)


def approximate_inverse(preconditioner: Preconditioner, user: str, system: System) -> ApproximateInverse:
    """The damped inverse of the factors; passes over the data count as iterations.

    Raises:
        ValueError: the operator has no damping, or the factors are those of other parameters.
    """
    damping = system.operator.damping
    if not damping > 0:
        raise ValueError(f"{user}: the operator's damping is 0, expected a number > 0")
    factors, passes = preconditioner.factors_for(system.operator)
    system.iterations += passes
    return ApproximateInverse(factors, damping)
