"""The curvature of a model's mean loss as a matrix."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from unlearnx import _distributed as distributed
from unlearnx._arguments import checked
from unlearnx._calls import check_call
from unlearnx._checks import Params, check_at_least_one, check_at_least_zero
from unlearnx._data import Data
from unlearnx._extras import extra
from unlearnx._losses import Loss
from unlearnx._vectors import Vector
from unlearnx.curvature.batch_curvature import CURVATURE_KINDS
from unlearnx.curvature.rows import CurvatureRows
from unlearnx.curvature.spectrum import Spectrum, rademacher

TRACE_VECTORS_PER_PASS = 8  # random vectors multiplied at once to estimate the trace


def check_curvature(kind: str, damping: float | None) -> None:
    """Refuse an unknown kind of curvature, and a damping that is negative or not finite."""
    if kind not in CURVATURE_KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(CURVATURE_KINDS)}")
    check_at_least_zero(damping=damping)


class CurvatureOperator:
    """The matrix ``C + damping * I``, where C is the curvature of the mean per-sample loss over the data.

    The autograd graph of a batch is recorded once and serves all vectors and later products; graphs are kept as long as
    they fit into a third of the free memory. Softmax regression (one linear layer with torch's cross entropy without
    class weights and label smoothing, which is also the head of most classifiers) needs no graph: its products are
    computed in closed form, for all vectors at once. Under ``torch.distributed`` every process must make the same calls
    with the same data; the samples are divided among the processes, and all of them return the same result.

    Args:
        model: in eval mode, or without layers such as BatchNorm in which samples influence each other. Parameters are
            read at every product, so they may change; those of the part before the chosen parameters may not.
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        data: pairs (x, y): tensors, a Dataset or a DataLoader (whose dataset is read by index, `batch_size`
            samples at a time). A Dataset may be larger than memory; where `params` leaves out the first part of the
            model, that part's outputs are kept, in memory or on disk (see :meth:`FrozenPrefix.features`). Data must
            not be changed in place: it is not noticed.
        kind: ``"hessian"``, or ``"ggn"`` for the generalised Gauss-Newton matrix, which has no negative
            eigenvalues where the loss is convex in the output.
        damping: multiple of the identity to add, >= 0.
        params: names of the parameters, ``"last:K"``, or None for all that require gradients. The part of the
            model before them runs once, here.
        batch_size: samples per pass; products do not depend on it.

    Attributes:
        kind: as given.
        names: names of the parameters.
        shape: (P, P) for P entries of the parameters.
        rows: the same matrix as solvers see it: products with rows (K, P) and with mini-batches.

    Raises:
        ValueError: an unknown kind, a negative damping, a batch size below 1, empty data, or a model in which samples
            influence each other.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature
    matrix-vector products for second-order gradient descent", 2002.

    Example:
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
        >>> operator = CurvatureOperator(model, torch.nn.functional.cross_entropy, (x, y), kind="ggn")
        >>> product = operator @ {k: torch.ones_like(p) for k, p in model.named_parameters()}
        >>> product["weight"].shape, operator.shape
        (torch.Size([2, 3]), (8, 8))
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Data,
        *,
        kind: str = "ggn",
        damping: float = 0.0,
        params: Params = None,
        batch_size: int | None = None,
    ):
        check_curvature(kind, damping)
        check_at_least_one(batch_size=batch_size)
        check_call(model, loss_fn, data)
        self.rows = CurvatureRows(
            model, loss_fn, data, kind=kind, damping=damping, params=params, batch_size=batch_size
        )
        self.kind, self.names = kind, self.rows.names

    @property
    def damping(self) -> float:
        """The multiple of the identity that is added."""
        return self.rows.damping

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return self.rows.layout.size, self.rows.layout.size

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.rows)

    @property
    def evaluations(self) -> int:
        """Number of samples in all products so far, those with mini-batches included."""
        return self.rows.evaluations

    def __matmul__(self, v: Vector) -> Vector:
        """:meth:`matvec` of one vector, :meth:`matmat` of several."""
        _, single = self.rows.layout.rows("v", v)
        return self.matvec(v) if single else self.matmat(v)

    @checked
    def matvec(self, v: Vector) -> Vector:
        """Product with `v`, a tensor for each parameter.

        Raises:
            ValueError: keys or shapes are not those of the parameters.
        """
        layout = self.rows.layout
        rows, single = layout.rows("v", v)
        if not single:
            raise ValueError(f"v: holds {len(rows)} vectors, expected one; matmat takes several")
        tensors = self.rows.curvature([layout.split(rows[0])])[0]
        if self.damping:
            torch._foreach_add_(tensors, layout.split(rows[0], wide=True), alpha=self.damping)
        return layout.named(tensors)

    @checked
    def matmat(self, v: Vector) -> Vector:
        """Products with K vectors at once: `v` and the result have a tensor (K, *shape) for each parameter.

        Every batch is read and run once for all of them.

        Raises:
            ValueError: keys or shapes are not those of K parameters.
        """
        layout = self.rows.layout
        rows, single = layout.rows("v", v)
        if single:
            raise ValueError("v: is one vector, expected K of them along the first dimension; matvec takes one")
        return layout.vector(self.rows.products(rows), single)

    @checked
    def minibatches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[CurvatureOperator]:
        """The operators of consecutive batches of the data in one random order, repeated without end.

        Each is the curvature of the mean loss of its batch, with the same damping. They count their products in the
        :attr:`evaluations` of this operator.

        Args:
            batch_size: samples per batch; the last one of a pass may have fewer.
            generator: CPU generator of the order.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        check_at_least_one(batch_size=batch_size)
        return map(self._of_rows, self.rows.minibatches(batch_size, generator))

    def _of_rows(self, rows: CurvatureRows) -> CurvatureOperator:
        part = copy.copy(self)
        part.rows = rows
        return part

    def to_scipy(self) -> Any:
        """The matrix as a ``scipy.sparse.linalg.LinearOperator``, for its eigensolvers and the like; needs SciPy.

        Its vectors are NumPy arrays: the entries of all parameters, in the order of :attr:`names`.

        Raises:
            ImportError: SciPy is not installed.
        """
        with extra("CurvatureOperator.to_scipy", "scipy"):
            from scipy.sparse.linalg import LinearOperator

        layout = self.rows.layout

        def matmat(columns: Any) -> Any:
            return self.rows.products(torch.from_numpy(columns.T.copy()).to(layout.like())).cpu().numpy().T

        def matvec(column: Any) -> Any:
            return matmat(column.reshape(-1, 1)).reshape(-1)

        dtype = str(layout.dtype).removeprefix("torch.")
        return LinearOperator(self.shape, matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat, dtype=dtype)

    @checked
    def spectrum(
        self, *, iterations: int = 50, tolerance: float = 1e-2, generator: torch.Generator | None = None
    ) -> Spectrum:
        """The smallest and the largest eigenvalue, damping included, by the Lanczos iteration.

        Args:
            iterations: most products to take.
            tolerance: error bound to stop at, relative to the largest absolute value of an eigenvalue.
            generator: CPU generator of the random start vector.

        Raises:
            ValueError: a product is not finite.
        """
        return self.rows.spectrum(iterations=iterations, tolerance=tolerance, generator=generator)

    @checked
    def top_eigenvalue(
        self, *, iterations: int = 50, tolerance: float = 1e-2, generator: torch.Generator | None = None
    ) -> float:
        """Largest eigenvalue, approached from below; arguments and errors as for :meth:`spectrum`."""
        return self.spectrum(iterations=iterations, tolerance=tolerance, generator=generator).largest

    @checked
    def smallest_eigenvalue(
        self, *, iterations: int = 50, tolerance: float = 1e-2, generator: torch.Generator | None = None
    ) -> float:
        """Smallest eigenvalue, approached from above; arguments and errors as for :meth:`spectrum`."""
        return self.spectrum(iterations=iterations, tolerance=tolerance, generator=generator).smallest

    @checked
    def trace(self, *, samples: int = 32, generator: torch.Generator | None = None) -> float:
        """Estimate of the trace, the mean of ``z . (C + damping I) z`` over vectors z of random signs.

        Its variance is at most ``2 ||C||_F^2 / samples``.

        Args:
            samples: products to take.
            generator: CPU generator of the signs.

        Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989.
        """
        check_at_least_one(samples=samples)
        total = 0.0
        with self.rows.fixed():
            for start in range(0, samples, TRACE_VECTORS_PER_PASS):
                signs = rademacher(min(TRACE_VECTORS_PER_PASS, samples - start), self.shape[0], generator)
                z = distributed.broadcast_(signs.to(self.rows.layout.like()))
                total += float((z * self.rows.products(z)).sum(dtype=torch.float64))
        return total / samples
