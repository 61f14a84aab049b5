"""Vectors over the parameters: dictionaries for users, rows of a matrix (K, P) inside the engines."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Vector = dict[str, Tensor]


def scaled(a: Vector, factor: float) -> Vector:
    """``factor * a``."""
    return {k: t * factor for k, t in a.items()}


class Layout:
    """The order of the parameters' entries in a row of P numbers, float32 or float64.

    Args:
        reference: the parameters.

    Attributes:
        names, shapes: of the parameters.
        size: number of entries P.
        device, dtype: device and dtype of the rows.
    """

    def __init__(self, reference: Vector):
        self.names = list(reference)
        self.shapes = {name: t.shape for name, t in reference.items()}
        self._dtypes = [t.dtype for t in reference.values()]
        self._sizes = [t.numel() for t in reference.values()]
        self.size = sum(self._sizes)
        self.device = next(iter(reference.values())).device
        self.dtype = torch.float64 if torch.float64 in self._dtypes else torch.float32

    def like(self) -> Tensor:
        """An empty tensor with the device and the dtype of the rows."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def row(self, tensors: Sequence[Tensor]) -> Tensor:
        """(P,) from one tensor per parameter; always a copy."""
        return torch.cat([t.reshape(-1) for t in tensors]).to(self.dtype)

    def split(self, row: Tensor, *, wide: bool = False) -> list[Tensor]:
        """One tensor per parameter from (P,): in the parameters' dtypes, or, if `wide`, views in the row's dtype."""
        parts = zip(row.split(self._sizes), self.shapes.values(), self._dtypes, strict=True)
        return [part.view(shape) if wide else part.view(shape).to(dtype) for part, shape, dtype in parts]

    def owned(self, tensors: Sequence[Tensor | None], others: Sequence[Tensor]) -> list[Tensor]:
        """Tensors that may be written to, in the rows' dtype: zeros for None; copies of those that share memory."""
        taken = {t.untyped_storage().data_ptr() for t in others}
        result = []
        for t, shape in zip(tensors, self.shapes.values(), strict=True):
            if t is None:
                t = torch.zeros(shape, dtype=self.dtype, device=self.device)
            elif t.dtype != self.dtype:
                t = t.to(self.dtype)
            elif t.untyped_storage().data_ptr() in taken or 0 in t.stride():  # expanded: its entries share memory
                t = t.clone(memory_format=torch.contiguous_format)
            taken.add(t.untyped_storage().data_ptr())
            result.append(t)
        return result

    def named(self, tensors: Sequence[Tensor]) -> Vector:
        """A vector from one tensor per parameter, in the parameters' dtypes."""
        parts = zip(self.shapes, tensors, self._dtypes, strict=True)
        return {name: t.to(dtype).contiguous() for name, t, dtype in parts}

    def rows(self, what: str, v: Vector) -> tuple[Tensor, bool]:
        """(K, P) from a vector, or from K vectors stacked along a first dimension; and whether it was a single one.

        Raises:
            ValueError: keys or shapes are not those of the parameters; the message starts with `what`.
        """
        if v.keys() != self.shapes.keys():
            raise ValueError(f"{what}: has keys {sorted(v)}, expected {sorted(self.shapes)}")
        single = all(v[name].dim() == len(shape) for name, shape in self.shapes.items())
        count = 1 if single else next(iter(v.values())).shape[0] if next(iter(v.values())).dim() else 0
        for name, shape in self.shapes.items():
            expected = shape if single else (count, *shape)
            if v[name].shape != expected:
                several = ", ".join(map(str, ("K", *shape)))
                raise ValueError(
                    f"{what}[{name!r}] has shape {list(v[name].shape)}, "
                    f"expected {list(shape)}, or [{several}] for K vectors"
                )
        if count == 0:
            raise ValueError(f"{what}: holds no vectors, expected at least one")
        parts = [v[name].to(self.device, self.dtype).reshape(count, -1) for name in self.shapes]
        return torch.cat(parts, 1), single

    def vector(self, rows: Tensor, single: bool, *, wide: bool = False) -> Vector:
        """The vector of a single row, or K vectors stacked, in the parameters' dtypes or, if `wide`, the rows'."""
        parts = zip(self.shapes.items(), rows.split(self._sizes, 1), self._dtypes, strict=True)
        return {
            name: part.reshape(shape if single else (len(rows), *shape)).to(rows.dtype if wide else dtype)
            for (name, shape), part, dtype in parts
        }
