"""The linear system that a solver works on."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx._distributed import broadcast_
from unlearnx.curvature.rows import CurvatureRows

RightHandSides = slice | list[int]  # indices of some of the right-hand sides


class System:
    """The system ``A x = v`` while a solver works on it; vectors are rows (K, P).

    Args:
        operator: A, the damped curvature.
        v: the right-hand sides.

    Attributes:
        x: the estimates.
        norms: of the right-hand sides, (K,), float64, on the CPU.
        extra_damping: what LiSSA adds to the operator's.
        iterations, history, stopped, scale: as :class:`unlearnx.curvature.Solution` has them.
    """

    def __init__(self, operator: CurvatureRows, v: Tensor):
        self.operator, self.v = operator, v
        self.x = torch.zeros_like(v)
        self.norms = broadcast_(v.norm(dim=1)).double().cpu()
        self.extra_damping = 0.0
        self.iterations = 0
        self.history: list[list[float]] = []
        self.stopped = "the right-hand side is zero"
        self.scale = 0.0

    def products(self, rows: Tensor) -> Tensor:
        """Products with the rows, counted as iterations."""
        self.iterations += len(rows)
        return self.operator.products(rows)

    def relative_norms(self, rows: Tensor, which: RightHandSides = slice(None)) -> Tensor:
        """Norms of rows divided by those of the right-hand sides, float64; not divided where the latter are zero."""
        norms = broadcast_(rows.norm(dim=1)).double().cpu()
        return torch.where(self.norms[which] > 0, norms / self.norms[which], norms)

    def residuals(self, x: Tensor, which: RightHandSides = slice(None)) -> Tensor:
        """Relative residuals of estimates x, by products that are not counted."""
        image = self.operator.products(x).add_(x, alpha=self.extra_damping)
        return self.relative_norms(image.sub_(self.v[which]), which)
