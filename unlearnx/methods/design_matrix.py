"""The data of a linear model: rows that are multiplied, dense or sparse."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

POWER_ITERATIONS = 30  # of the bound on the spectral norm; few suffice, and every one gives a bound
SMALL = 256  # columns up to which the Gram matrix is cheap


class Design(ABC):
    """A matrix X of shape (n, p).

    Attributes:
        shape: rows n and columns p.
        dtype: float64, or float32 of :attr:`single`.
    """

    shape: tuple[int, int]
    dtype: torch.dtype

    @abstractmethod
    def times(self, v: Tensor) -> Tensor:
        """X v for v (p, k)."""

    @abstractmethod
    def transposed_times(self, u: Tensor) -> Tensor:
        """X^T u for u (n, k)."""

    @abstractmethod
    def rows(self, indices: Tensor) -> Design:
        """Some of the rows."""

    @abstractmethod
    def absolute(self) -> Design:
        """The moduli of the entries."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Squared norms of the rows, (n,)."""

    @cached_property
    @abstractmethod
    def single(self) -> Design:
        """The same in float32, whose products with many vectors take a fraction of the time."""

    def spectral_norm_bound(self) -> float:
        """A number that the spectral norm of X never exceeds.

        With few columns, the root of the Gram matrix's largest eigenvalue, plus what rounding may have cost. Otherwise
        the bound of Collatz and Wielandt: for A = ``|X|^T |X|`` and any positive v, no eigenvalue of A exceeds
        ``max_j (A v)_j / v_j``. Power iteration makes it tight where no entry is negative, as in counts and
        indicators. With signs, ``|X|`` has a larger norm than X, at most the Frobenius norm. (An iteration on X
        itself, Lanczos' included, bounds its norm from below only.)
        """
        n, p = self.shape
        if p <= SMALL:
            gram = self.transposed_times(self.times(torch.eye(p, dtype=torch.float64)))
            slack = max(n, p) * torch.finfo(torch.float64).eps * float(gram.diagonal().sum())
            return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0) + slack) ** 0.5
        moduli = self.absolute()
        square = float(self.squared_norms().sum())  # of the Frobenius norm
        v = torch.ones(p, 1, dtype=torch.float64)
        for _ in range(POWER_ITERATIONS):
            image = moduli.transposed_times(moduli.times(v))
            square = min(square, float((image / v).max()))
            v = (image / image.max().clamp(min=1e-300)).clamp(min=1e-12)  # any positive vector gives a bound
        return (square * (1 + 1e-12 * max(1.0, p**0.5))) ** 0.5


class DenseDesign(Design):
    """Rows in a tensor (n, p)."""

    def __init__(self, x: Tensor):
        self.x, self.dtype = x, x.dtype
        self.shape = (x.shape[0], x.shape[1])

    def times(self, v: Tensor) -> Tensor:  # noqa: D102
        return self.x @ v

    def transposed_times(self, u: Tensor) -> Tensor:  # noqa: D102
        return self.x.T @ u

    def rows(self, indices: Tensor) -> DenseDesign:  # noqa: D102
        return DenseDesign(self.x[indices])

    def absolute(self) -> DenseDesign:  # noqa: D102
        return DenseDesign(self.x.abs())

    def squared_norms(self) -> Tensor:  # noqa: D102
        return self.x.square().sum(1)

    @cached_property
    def single(self) -> DenseDesign:  # noqa: D102
        return DenseDesign(self.x.float())


class SparseDesign(Design):
    """Rows and columns in compressed form, both, so that neither product has to scatter.

    With 32-bit indices, which halves the time of products with one vector, except where there are too many entries.
    """

    def __init__(self, matrix: Tensor, transposed: Tensor | None = None):
        """`matrix` and, where it is known, its transpose are in torch's CSR layout."""
        self.matrix, self.dtype = matrix, matrix.dtype
        self.shape = (matrix.shape[0], matrix.shape[1])
        if transposed is None:
            columns = matrix.to_sparse_csc()
            transposed = _csr(columns.ccol_indices(), columns.row_indices(), columns.values(), self.shape[::-1])
        self.transposed = transposed

    def times(self, v: Tensor) -> Tensor:  # noqa: D102
        return _product(self.matrix, v)

    def transposed_times(self, u: Tensor) -> Tensor:  # noqa: D102
        return _product(self.transposed, u)

    def rows(self, indices: Tensor) -> SparseDesign:  # noqa: D102
        begin, end = (self.matrix.crow_indices()[indices + k].long() for k in (0, 1))
        counts = end - begin
        ends = counts.cumsum(0)
        taken = torch.arange(int(counts.sum())) + (begin - ends + counts).repeat_interleave(counts)
        starts = torch.cat([ends.new_zeros(1), ends]).to(self.matrix.crow_indices().dtype)
        entries = self.matrix.col_indices()[taken], self.matrix.values()[taken]
        return SparseDesign(_csr(starts, *entries, (len(indices), self.shape[1])))

    def absolute(self) -> SparseDesign:  # noqa: D102
        return self._with(torch.abs)

    def squared_norms(self) -> Tensor:  # noqa: D102
        squares = self._with(torch.square)
        return squares.times(torch.ones(self.shape[1], 1, dtype=torch.float64))[:, 0]

    @cached_property
    def single(self) -> SparseDesign:  # noqa: D102
        return self._with(Tensor.float)

    def _with(self, change) -> SparseDesign:
        """The same matrix with `change` applied to its values."""
        both = (
            _csr(m.crow_indices(), m.col_indices(), change(m.values()), tuple(m.shape))
            for m in (self.matrix, self.transposed)
        )
        return SparseDesign(*both)


def _product(matrix: Tensor, v: Tensor) -> Tensor:
    if v.shape[1] == 1:
        return (matrix @ v[:, 0].contiguous())[:, None]
    if v.dtype == torch.float32:  # several times as fast as the product of matrices
        return F.embedding_bag(
            matrix.col_indices(),
            v.contiguous(),
            matrix.crow_indices(),
            mode="sum",
            per_sample_weights=matrix.values(),
            include_last_offset=True,
        )
    return matrix @ v


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch calls its compressed layouts beta each time a process first makes one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|CSC|invariant)")
        yield


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with _quiet():
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def as_design(x: Any, name: str = "x") -> Design:
    """The matrix in `x`: a tensor, dense or sparse in any layout, an array, or a sparse matrix of SciPy.

    Raises:
        TypeError: it is something else.
        ValueError: it has not two dimensions, or values that are not finite.
    """
    if hasattr(x, "tocsr"):
        m = x.tocsr()
        crow, col, values = (torch.from_numpy(np.asarray(t)) for t in (m.indptr, m.indices, m.data))
        x = _csr(crow, col, values, tuple(m.shape))
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: is {type(x).__name__}, expected a tensor, an array or a sparse matrix of SciPy")
    if x.dim() != 2:
        raise ValueError(f"{name}: has shape {list(x.shape)}, expected two dimensions, rows and features")
    x = x.detach().cpu()
    if x.layout == torch.strided:
        x = x.double()
        _check_finite(name, x)
        return DenseDesign(x)
    with _quiet():
        x = x.to_sparse_csr()
    values = x.values().double()
    _check_finite(name, values)
    index = torch.int32 if max(len(values), *x.shape) < 2**31 else torch.int64
    return SparseDesign(_csr(x.crow_indices().to(index), x.col_indices().to(index), values, tuple(x.shape)))


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise ValueError(f"{name}: {bad} of {values.numel()} values are NaN or infinite")
