"""Vectors over the parameters: dictionaries outside, rows of one matrix inside."""

from __future__ import annotations

import torch
from torch import Tensor

Vector = dict[str, Tensor]


def norm(a: Vector) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in a.values()])))


def scaled(a: Vector, factor: float) -> Vector:
    return {k: t * factor for k, t in a.items()}


class Layout:
    """How parameters lie in a row of P numbers, float32 or wider.

    Args:
        reference: the parameters.

    Attributes:
        size: P.
        device, dtype: of the rows.
    """

    def __init__(self, reference: Vector):
        self._shapes = {name: t.shape for name, t in reference.items()}
        self._dtypes = [t.dtype for t in reference.values()]
        self._sizes = [t.numel() for t in reference.values()]
        self.size = sum(self._sizes)
        self.device = next(iter(reference.values())).device
        self.dtype = torch.float64 if torch.float64 in self._dtypes else torch.float32

    def row(self, tensors: list[Tensor | None]) -> Tensor:
        """(P,) from one tensor a parameter, None being zeros; always a copy."""
        parts = [
            torch.zeros(size, dtype=self.dtype, device=self.device) if t is None else t.reshape(-1)
            for t, size in zip(tensors, self._sizes, strict=True)
        ]
        return torch.cat(parts).to(self.dtype)

    def split(self, row: Tensor) -> list[Tensor]:
        """One tensor a parameter from (P,), in the parameters' dtypes; views where these are the row's."""
        parts = zip(row.split(self._sizes), self._shapes.values(), self._dtypes, strict=True)
        return [part.view(shape).to(dtype) for part, shape, dtype in parts]

    def rows(self, what: str, v: Vector) -> tuple[Tensor, bool]:
        """(K, P) from a vector or from K of them, stacked along a first dimension; whether there was one only.

        Raises:
            ValueError: keys or shapes are not those of the parameters; the message starts with `what`.
        """
        if v.keys() != self._shapes.keys():
            raise ValueError(f"{what}: has keys {sorted(v)}, expected {sorted(self._shapes)}")
        single = all(v[name].shape == shape for name, shape in self._shapes.items())
        count = 1 if single else next(iter(v.values())).shape[0] if next(iter(v.values())).dim() else 0
        for name, shape in self._shapes.items():
            expected = shape if single else (count, *shape)
            if v[name].shape != expected:
                raise ValueError(
                    f"{what}[{name!r}] has shape {list(v[name].shape)}, expected {list(shape)}, or K of these"
                )
        parts = [v[name].to(self.device, self.dtype).reshape(count, -1) for name in self._shapes]
        return torch.cat(parts, 1), single

    def vector(self, rows: Tensor, single: bool) -> Vector:
        """The vector of the only row, or K of them stacked, in the parameters' dtypes."""
        parts = zip(self._shapes.items(), rows.split(self._sizes, 1), self._dtypes, strict=True)
        return {
            name: part.reshape(shape if single else (len(rows), *shape)).to(dtype)
            for (name, shape), part, dtype in parts
        }
