"""The Fisher information of single layers and parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unlearnx._vectors import Vector
from unlearnx.curvature.kfac.layers import Layer


@dataclass
class KroneckerBlock:
    """The Fisher information of a layer, diagonal in the basis ``U_out (x) U_in``.

    Args:
        layer: the layer.
        into: U_in (I, I), eigenvectors in columns; None for the identity. Stacked as the layer says.
        out: U_out (O, O).
        values: the diagonal, (O, I).
    """

    layer: Layer
    into: Tensor | None
    out: Tensor
    values: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the block."""
        return self.layer.names

    def apply(self, function: Callable[[Tensor], Tensor], v: Vector) -> Vector:
        """``U f(values) U^T v`` for K vectors, a tensor (K, *shape) for each parameter."""
        m = self.layer.matrices(v)
        out, into = self.out.to(m), None if self.into is None else self.into.to(m)  # vectors may have more digits
        m = out.mT @ m
        m = m if into is None else m @ into
        m = out @ m.mul_(function(self.values))
        return self.layer.tensors(m if into is None else m @ into.mT)

    def diagonal(self) -> Vector:
        """The diagonal in the basis of the parameters."""
        m = self.out.square() @ self.values
        m = m if self.into is None else m @ self.into.mT.square()
        return {name: t[0] for name, t in self.layer.tensors(m[None]).items()}


@dataclass
class DiagonalBlock:
    """The exact diagonal of the Fisher information of a parameter without Kronecker factors."""

    name: str
    values: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter."""
        return (self.name,)

    def apply(self, function: Callable[[Tensor], Tensor], v: Vector) -> Vector:
        """``f(values) v`` for K vectors."""
        return {self.name: function(self.values) * v[self.name]}

    def diagonal(self) -> Vector:
        """The diagonal."""
        return {self.name: self.values}


Block = KroneckerBlock | DiagonalBlock
