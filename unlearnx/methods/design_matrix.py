"""The design matrix of a linear model, one row per sample, dense or sparse."""

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

POWER_ITERATIONS = 30  # for the bound on the spectral norm; the bound holds after any number of them
MAX_DENSE_COLUMNS = 256  # up to which a dense matrix (columns, columns) is formed, for exact eigenvalues and solves


class Design(ABC):
    """A matrix X of shape (n, p).

    Attributes:
        shape: rows n and columns p.
        dtype: float64; float32 for :attr:`single`.
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
        """The matrix of the rows with these indices."""

    @abstractmethod
    def absolute(self) -> Design:
        """The matrix of the entries' absolute values."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Squared norms of the rows, (n,)."""

    @cached_property
    @abstractmethod
    def single(self) -> Design:
        """The same matrix in float32, whose products with many vectors take a fraction of the time."""

    def spectral_norm_bound(self) -> float:
        """An upper bound of the spectral norm of X.

        With few columns it is the square root of the largest eigenvalue of ``X^T X``, plus a bound of the rounding
        error. Otherwise it is the bound of Collatz and Wielandt: for ``A = |X|^T |X|`` and any positive v, no
        eigenvalue of A exceeds ``max_j (A v)_j / v_j``. Power iteration makes this tight where no entry is negative, as
        for counts and indicators. With negative entries ``|X|`` has a larger norm than X, but not above the Frobenius
        norm, which bounds the result too. (Iterations on X itself, such as Lanczos', only bound its norm from below.)
        """
        n, p = self.shape
        if p <= MAX_DENSE_COLUMNS:
            gram = self.transposed_times(self.times(torch.eye(p, dtype=torch.float64)))
            rounding = max(n, p) * torch.finfo(torch.float64).eps * float(gram.diagonal().sum())
            return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0) + rounding) ** 0.5
        absolute = self.absolute()
        squared_bound = float(self.squared_norms().sum())  # of the Frobenius norm
        v = torch.ones(p, 1, dtype=torch.float64)
        for _ in range(POWER_ITERATIONS):
            image = absolute.transposed_times(absolute.times(v))
            squared_bound = min(squared_bound, float((image / v).max()))
            v = (image / image.max().clamp(min=1e-300)).clamp(min=1e-12)  # must stay positive
        return (squared_bound * (1 + 1e-12 * max(1.0, p**0.5))) ** 0.5  # the factor covers rounding


class DenseDesign(Design):
    """A matrix in a dense tensor (n, p)."""

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
    """A sparse matrix, stored with its transpose, so that both products read rows and neither scatters.

    Indices have 32 bits, which halves the time of products with one vector, unless there are too many entries.
    """

    def __init__(self, matrix: Tensor, transposed: Tensor | None = None):
        """`matrix` and its transpose, which is computed where None, are in torch's CSR layout."""
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
        """The same matrix with `change` applied to its nonzero values."""
        both = (
            _csr(m.crow_indices(), m.col_indices(), change(m.values()), tuple(m.shape))
            for m in (self.matrix, self.transposed)
        )
        return SparseDesign(*both)


def _product(matrix: Tensor, v: Tensor) -> Tensor:
    if v.shape[1] == 1:
        return (matrix @ v[:, 0].contiguous())[:, None]
    if v.dtype == torch.float32:  # several times as fast as the sparse matrix product
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
def _no_beta_warnings() -> Iterator[None]:
    """Silence torch's warning that its compressed sparse layouts are in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|CSC|invariant)")
        yield


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with _no_beta_warnings():
        return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


def as_design(x: Any, name: str = "x") -> Design:
    """A :class:`Design` of `x`: a tensor, dense or sparse in any layout, a NumPy array, or a SciPy sparse matrix.

    Raises:
        TypeError: `x` is something else.
        ValueError: `x` does not have two dimensions, or has values that are not finite.
    """
    if hasattr(x, "tocsr"):
        m = x.tocsr()
        crow, col, values = (torch.from_numpy(np.asarray(t)) for t in (m.indptr, m.indices, m.data))
        x = _csr(crow, col, values, tuple(m.shape))
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: is {type(x).__name__}, expected a tensor, a NumPy array or a SciPy sparse matrix")
    if x.dim() != 2:
        raise ValueError(f"{name}: has shape {list(x.shape)}, expected two dimensions (samples, features)")
    if x.is_meta:
        raise ValueError(f"{name}: is on the meta device, expected values")
    x = x.detach().cpu()
    if x.layout == torch.strided:
        x = x.double()
        _check_finite(name, x)
        return DenseDesign(x)
    with _no_beta_warnings():
        x = x.to_sparse_csr()
    values = x.values().double()
    _check_finite(name, values)
    index = torch.int32 if max(len(values), *x.shape) < 2**31 else torch.int64
    return SparseDesign(_csr(x.crow_indices().to(index), x.col_indices().to(index), values, tuple(x.shape)))


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise ValueError(f"{name}: {bad} of {values.numel()} values are NaN or infinite")
