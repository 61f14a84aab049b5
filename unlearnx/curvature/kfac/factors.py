"""Kronecker factors of a model's Fisher information, fitted once and asked many times."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._checks import Params, select_params
from unlearnx._vectors import Layout, Vector
from unlearnx.curvature.kfac.blocks import Block
from unlearnx.curvature.kfac.files import read_factors, write_factors
from unlearnx.curvature.kfac.fingerprint import fingerprint

if TYPE_CHECKING:
    from unlearnx.curvature.rows import CurvatureRows

MEAN_EIGENVALUES = 0.1  # the default damping of a layer, in units of the mean eigenvalue of its factors


class Factors:
    """The Fisher information ``F`` of the mean loss, block by block in Kronecker factors; made by ``EKFAC().fit(...)``.

    Vectors are a tensor for each parameter, or K of them along a first dimension.

    Attributes:
        layout: the order of the parameters in rows (K, P).
        blocks: of the layers, and of single parameters by their diagonals.
        info: what the factors were fitted with: ``method``, ``fisher_type``, ``approximation``, ``samples``,
            ``passes`` of the model over the data, and the ``fingerprint`` of the model.
        fisher_diagonal: the exact diagonal of the Fisher information, as :func:`unlearnx.curvature.fisher_diagonal`
            gives it; None where it was not asked for.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(50, 4), torch.arange(50) % 3
        >>> factors = EKFAC().fit(model, nn.functional.cross_entropy, (x, y))
        >>> v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        >>> w = factors.solve(factors.matvec(v, damping=0.1), damping=0.1)
        >>> torch.allclose(w["weight"], v["weight"], atol=1e-4)
        True
    """

    def __init__(self, layout: Layout, blocks: list[Block], info: dict[str, Any], fisher_diagonal: Vector | None):
        self.layout, self.blocks, self.info, self.fisher_diagonal = layout, blocks, info, fisher_diagonal

    def __repr__(self) -> str:
        """What they are and of how many samples."""
        return f"Factors({self.info['method']}, {self.info['fisher_type']}, {self.samples:,} samples)"

    @property
    def samples(self) -> int:
        """How many samples the factors were fitted on."""
        return int(self.info["samples"])

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a model that the factors were not fitted for.

        Raises:
            ValueError: it has other parameters or buffers, or they have changed since.
        """
        if self.info["fingerprint"] != fingerprint(model):
            raise ValueError(
                "factors: were fitted for a model with other parameters or buffers, or this one has changed since; "
                "fit them again"
            )

    def check_params(self, model: nn.Module, params: Params) -> None:
        """Refuse a choice of parameters other than those of the factors; None stands for these.

        Raises:
            ValueError: they are others.
        """
        if params is not None and select_params(model, params) != self.layout.names:
            raise ValueError(f"params: is {params!r}, expected those of the factors: {', '.join(self.layout.names)}")

    @checked
    def matvec(self, v: Vector, damping: float = 0.0) -> Vector:
        """``(F + damping I) v``."""
        _check_damping(damping, positive=False)
        return self._applied(lambda values: values + damping, v)

    @checked
    def solve(self, v: Vector, damping: float | None = None) -> Vector:
        """``(F + damping I)^-1 v``; a damping of None is a tenth of the mean eigenvalue, in each layer its own.

        Raises:
            ValueError: the damping is not above zero; or keys or shapes of `v` are not those of the parameters.
        """
        return self._applied(inverse(damping), v)

    @checked
    def sqrt_solve(self, v: Vector, damping: float) -> Vector:
        """``(F + damping I)^-1/2 v``; errors as for :meth:`solve`."""
        _check_damping(damping)
        return self._applied(lambda values: (values + damping).rsqrt(), v)

    def diagonal(self) -> Vector:
        """The diagonal of F in the basis of the parameters; the exact one is :attr:`fisher_diagonal`."""
        found = {name: t for block in self.blocks for name, t in block.diagonal().items()}
        return {name: found[name].contiguous() for name in self.layout.names}

    def trace(self) -> float:
        """The trace of F."""
        return math.fsum(float(block.values.sum(dtype=torch.float64)) for block in self.blocks)

    def largest(self) -> float:
        """The largest eigenvalue of F."""
        return max(float(block.values.max()) for block in self.blocks)

    def rows_applied(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """``U f(eigenvalues) U^T`` of the rows of a matrix (K, P)."""
        v = self.layout.vector(rows, single=False, wide=True)
        result = {name: t for block in self.blocks for name, t in block.apply(function, v).items()}
        return self.layout.rows("v", {name: result[name] for name in v})[0]

    def factors_for(self, operator: CurvatureRows) -> tuple[Factors, int]:
        """These factors, where they are of the operator's parameters; no passes over the data."""
        if self.layout.shapes != operator.layout.shapes:
            raise ValueError(
                f"preconditioner: the factors are those of {', '.join(self.layout.names)}, expected those of "
                f"{', '.join(operator.names)}"
            )
        return self, 0

    @checked
    def save(self, path: Path) -> None:
        """Write the factors to a safetensors file, in one step; needs safetensors.

        Raises:
            ImportError: safetensors is not installed.
            OSError: the file cannot be written.
        """
        write_factors(path, self.layout.names, self.blocks, self.info, self.fisher_diagonal)

    @classmethod
    @checked
    def load(cls, path: Path, model: nn.Module) -> Factors:
        """Read the factors that were fitted for `model`, as it is now.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: safetensors is not installed.
            ValueError: the file holds no factors, or those of another model, or the model has changed since.
        """
        return cls(*read_factors(path, model))

    def _applied(self, function: Callable[[Tensor], Tensor], v: Vector) -> Vector:
        rows, single = self.layout.rows("v", v)
        return self.layout.vector(self.rows_applied(function, rows), single)


def inverse(damping: float | None) -> Callable[[Tensor], Tensor]:
    """``1 / (eigenvalues + damping)``; None for a tenth of the mean eigenvalue of a layer."""
    if damping is not None:
        _check_damping(damping)
        return lambda values: 1 / (values + damping)
    # A layer whose eigenvalues are all zero has gradients of zero.
    return lambda values: 1 / (values + (MEAN_EIGENVALUES * values.mean()).clamp(min=torch.finfo(values.dtype).tiny))


def _check_damping(damping: float, *, positive: bool = True) -> None:
    if not (0 <= damping < math.inf and (damping or not positive)):
        raise ValueError(f"damping is {damping}, expected a finite number {'>' if positive else '>='} 0")
