"""Influence unlearning with the inverse of WoodFisher, as the field's tables have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Subset

from unlearnx._checks import check_at_least_one
from unlearnx._data import Data, drawn, size
from unlearnx._vectors import Vector
from unlearnx.curvature import grad_difference, per_sample_grad_dot
from unlearnx.methods.base import Method, Work
from unlearnx.methods.step_size import check_size


@dataclass
class WoodFisher(Method):
    """``theta <- theta + factor * k``: the row "IU", influence unlearning, of the field's tables.

    k is what a recursion over gradients g_1, g_2, ... of single samples of what stays makes of
    ``v = m / n (mean gradient of the forget set - mean gradient of what stays)``, m of n samples being forgotten (of a
    correction, of the old losses less the new ones, divided by n): with ``o = g_1``, for every further gradient g,

        ``k <- k - (k . g) / (N + o . g) o``  and  ``o <- o - (o . g) / (N + o . g) o``.

    The inverse of Singh and Alistarh has ``F^-1 g`` in the place of o, anew for every g. The recursion of the public
    code, which gave the published numbers, keeps one o, and that only shrinks: k differs from v by a multiple of g_1
    alone, and the row is nearly a step along the gradient. An influence update whose system is solved, with a residual
    that says how well, is :class:`SecondOrder`.

    Args:
        factor: how far to go, alpha in the source; ``"auto"`` finds the least that forgets.
        samples: N. Of what stays, N + 2 samples are read, drawn at random by the seed where there are more (the source
            takes those that its loader gives first).

    Raises:
        ValueError: a number is out of range.

    Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, and Fan et al., "SalUn", ICLR
    2024, with their public code; after Izzo et al., 2021, Koh and Liang, 2017, and Singh and Alistarh, "WoodFisher:
    Efficient Second-Order Approximation for Neural Network Compression", NeurIPS 2020.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = WoodFisher(factor=2.0)(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.info["factor"], outcome.gradient_evaluations  # all samples, and those that stay once more
        (2.0, 114)
    """

    _strength: ClassVar[str | None] = "factor"

    factor: float | str = "auto"
    samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size("factor", self.factor)
        check_at_least_one(samples=self.samples)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        v = self._gradient(work)
        generator = torch.Generator().manual_seed(self.seed)
        read = drawn(work.target, self.samples + 2, generator, work.pace.batch_size)
        first = self._summed(work, Subset(read, [0]))
        along = 0.0
        if size(read) > 1:
            both = {name: torch.stack([v[name], first[name]]) for name in work.names}
            rest = Subset(read, range(1, size(read)))
            work.gradient_evaluations += size(rest)
            products = per_sample_grad_dot(
                work.model, self.loss_fn, rest, both, params=work.names, batch_size=work.pace.batch_size
            )
            along = multiple_of_first(products, self.samples)
        away = {name: along * first[name] - v[name] for name in work.names}
        work.subtract(away, check_size("factor", self.factor), info)

    def _gradient(self, work: Work) -> Vector:
        """v of the class's docstring."""
        request, goes = work.request, work.request.forget_set
        if request.corrected is not None:
            new = self._summed(work, goes, request.correction)
            return {name: -t / size(request.dataset) for name, t in new.items()}
        m, stays = size(goes), size(request.retain_set)
        forget, retain = self._summed(work, goes), self._summed(work, request.retain_set)
        return {name: (forget[name] - retain[name] * (m / stays)) / (m + stays) for name in work.names}

    def _summed(self, work: Work, data: Data, new: Data | None = None) -> Vector:
        work.gradient_evaluations += size(data)
        return grad_difference(work.model, self.loss_fn, data, new, params=work.names, batch_size=work.pace.batch_size)


def multiple_of_first(products: Tensor, n: int) -> float:
    """The number a for which the recursion ends at ``k = v - a g_1``.

    All that it needs of the gradients g are their products with v and with g_1, since o is a multiple of g_1 too.

    Args:
        products: (2, K): v . g and g_1 . g of the gradients after the first.
        n: N.
    """
    o, along = 1.0, 0.0  # o as a multiple of g_1
    for with_v, with_first in products.double().T.tolist():
        with_o = o * with_first
        step = o / (n + with_o)
        along, o = along + (with_v - along * with_first) * step, o - with_o * step
    return along
