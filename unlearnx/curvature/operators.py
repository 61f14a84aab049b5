"""Products with the curvature of a model's mean loss."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearnx import _distributed as distributed
from unlearnx._arguments import checked
from unlearnx._batches import Nest, moved
from unlearnx._calls import check_call
from unlearnx._checks import (
    Params,
    check_at_least_one,
    check_at_least_zero,
    check_deterministic,
    model_device,
    select_params,
)
from unlearnx._copies import lent
from unlearnx._data import BATCH_SIZE, Data, check_same_in_every_process, check_visits_all
from unlearnx._losses import Loss, SampleLoss
from unlearnx._memory import free_bytes
from unlearnx._memory_order import ImageOrder
from unlearnx._models import check_gradients_possible
from unlearnx._progress import passing
from unlearnx._sources import Samples
from unlearnx._vectors import Layout, Vector
from unlearnx.curvature.batch_curvature import CURVATURE_KINDS, BatchCurvature, RecordedBatch, Snapshot, Values
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.softmax_head import SAMPLES_PER_PASS, SoftmaxRegression, is_softmax_regression
from unlearnx.curvature.spectrum import Spectrum, lanczos, rademacher

KEPT_MEMORY_FRACTION = 0.25  # part of the free memory that the batches' graphs may take
TRACE_VECTORS_PER_PASS = 8  # random vectors multiplied at once to estimate the trace


def check_curvature(kind: str, damping: float) -> None:
    """Refuse an unknown kind of curvature, and a damping that is negative or not finite."""
    if kind not in CURVATURE_KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(CURVATURE_KINDS)}")
    check_at_least_zero(damping=damping)


class CurvatureOperator:
    """The matrix ``C + damping * I``, where C is the curvature of the mean per-sample loss over the data.

    The autograd graph of a batch is recorded once and serves all vectors and later products; graphs are kept as long as
    they fit into a quarter of the free memory. Softmax regression (one linear layer with torch's cross entropy without
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
        damping, kind: as given.
        names: names of the parameters.
        layout: the order of the parameters in the rows that :meth:`products` takes.

    Raises:
        ValueError: an unknown kind, a negative damping, a batch size below 1, empty data, or a model in which samples
            influence each other.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature
    matrix-vector products for second-order gradient descent", 2002.

    Example:
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
        >>> operator = CurvatureOperator(model, torch.nn.functional.cross_entropy, (x, y), kind="ggn")
        >>> product = operator.matvec({k: torch.ones_like(p) for k, p in model.named_parameters()})
        >>> product["weight"].shape
        torch.Size([2, 3])
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
        self.kind, self.damping = kind, damping
        self.names = select_params(model, params)
        check_visits_all(data)
        frozen_prefix = FrozenPrefix(model, self.names, data)
        self.model = frozen_prefix.head
        own = dict(self.model.named_parameters())
        if frozen_prefix.prefix is not None:  # otherwise samples are read by index, the same in every process
            check_same_in_every_process("data", data)
        self.layout = Layout({name: own[name] for name in self.names})
        self._data = frozen_prefix.features(data, batch_size=batch_size)
        self._samples = Samples(self._data)
        self._order = torch.arange(len(self._samples))
        self._shared = _SharedState(self.model, frozen_prefix.prefix, self.names, loss_fn)
        self.batch_size = batch_size or (SAMPLES_PER_PASS if self._shared.softmax else BATCH_SIZE)
        self._kept: dict[tuple[int, int], BatchCurvature] = {}

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._order)

    @property
    def evaluations(self) -> int:
        """Number of samples in all products so far, including products of :meth:`minibatches`."""
        return self._shared.evaluations

    def problem(self) -> tuple[nn.Module, Loss, Data]:
        """The part of the model with the chosen parameters, the loss, and the data as that part takes them."""
        return self.model, self._shared.loss.loss_fn, self._data

    @checked
    def matvec(self, v: Vector) -> Vector:
        """Product with `v`, a tensor for each parameter.

        Raises:
            ValueError: keys or shapes are not those of the parameters.
        """
        rows, single = self.layout.rows("v", v)
        if not single:
            raise ValueError(f"v: holds {len(rows)} vectors, expected one; matmat takes several")
        tensors = self.curvature([self.layout.split(rows[0])])[0]
        if self.damping:
            torch._foreach_add_(tensors, self.layout.split(rows[0], wide=True), alpha=self.damping)
        return self.layout.named(tensors)

    @checked
    def matmat(self, v: Vector) -> Vector:
        """Products with K vectors at once: `v` and the result have a tensor (K, *shape) for each parameter.

        Every batch is read and run once for all of them.

        Raises:
            ValueError: keys or shapes are not those of K parameters.
        """
        rows, single = self.layout.rows("v", v)
        if single:
            raise ValueError("v: is one vector, expected K of them along the first dimension; matvec takes one")
        return self.layout.vector(self.products(rows), single)

    def products(self, rows: Tensor) -> Tensor:
        """Products with the rows of a matrix (K, P), as a matrix (K, P)."""
        tensors = self.curvature([self.layout.split(row) for row in rows])
        result = torch.stack([self.layout.row(t) for t in tensors])
        return result.add_(rows, alpha=self.damping) if self.damping else result

    def curvature(self, vectors: Sequence[Values]) -> list[list[Tensor]]:
        """Products of C alone, without damping, with vectors of one tensor per parameter; in float32 or float64."""
        self._shared.evaluations += len(self) * len(vectors)
        snapshot = self._shared.snapshot()
        totals: list[list[Tensor]] = []
        mine = distributed.local_range(len(self))
        with passing("curvature product", len(mine)) as advance:
            for start in range(mine.start, mine.stop, self.batch_size):
                stop = min(start + self.batch_size, mine.stop)
                batch = self._batch(start, stop, snapshot)
                products = batch.products(vectors, keep=self._kept.get((start, stop)) is batch)
                for k, (v, tensors) in enumerate(zip(vectors, products, strict=True)):
                    product = self.layout.owned(tensors, v)
                    if len(totals) <= k:
                        totals.append(product)
                    else:
                        torch._foreach_add_(totals[k], product)
                advance(stop - start)
        totals = totals or [self.layout.owned([None] * len(self.names), []) for _ in vectors]
        distributed.all_reduce_(t for total in totals for t in total)
        return totals

    def _batch(self, start: int, stop: int, snapshot: Snapshot) -> BatchCurvature:
        batch = self._kept.get((start, stop))
        if batch is None or batch.snapshot is not snapshot:
            self._kept.pop((start, stop), None)
            x, y = self._samples.read(self._indices(start, stop))
            batch = self._shared.curvature_of_batch(CURVATURE_KINDS[self.kind], snapshot, x, y, len(self))
            if self._shared.keep(batch, stop - start):
                self._kept[start, stop] = batch
        return batch

    def softmax_regression(self) -> SoftmaxRegression | None:
        """All samples as one batch, where the model is softmax regression and memory holds them; else None."""
        if not self._shared.softmax:
            return None
        n, snapshot = len(self), self._shared.snapshot()
        batch = self._batch(0, min(n, self.batch_size), snapshot)
        if not isinstance(batch, SoftmaxRegression):
            return None
        if (0, n) not in self._kept and not self._shared.has_room(
            2 * n
        ):  # twice: a solver may copy them in random order
            return None
        batch = self._batch(0, n, snapshot)
        return batch if isinstance(batch, SoftmaxRegression) else None

    def samples_on_device(self) -> tuple[Tensor, Tensor] | None:
        """All samples on the device of the model, so that :meth:`of` gives products that do not wait for the host.

        None where the samples are not tensors or take too much memory, where products have a closed form, where
        processes share the work, or where the loss has to be compared with those of single samples.
        """
        if self._shared.softmax or distributed.processes() > 1 or not self._samples.in_memory:
            return None
        device = self.layout.device
        pair = self._samples.read(self._indices(0, len(self)))
        if not (self._shared.loss.exact and all(isinstance(t, Tensor) for t in pair)):
            return None
        bytes_moved = sum(t.nbytes for t in pair if t.device != device)
        if bytes_moved and bytes_moved > KEPT_MEMORY_FRACTION * free_bytes(device):
            return None
        x, y = (t.detach().to(device) for t in pair)
        return x, y

    def of(self, x: Tensor, y: Tensor, *, keep: bool) -> CurvatureOperator:
        """The operator of samples (x, y), on the device of the model, at the model's present parameters.

        Its autograd graphs share no nodes with others, so that its products can be captured in a CUDA graph.

        Args:
            x, y: the samples. Without `keep`, values that are written to them later count in later products.
            keep: whether graphs are kept; x and y must not change then.
        """
        part = copy.copy(self)
        part._samples, part._order, part._kept = Samples((x, y)), torch.arange(len(x), device="cpu"), {}
        part._shared = self._shared.with_own_leaves(keep)
        return part

    def count(self, evaluations: int) -> None:
        """Add to :attr:`evaluations` the samples of products that a solver computed without this operator."""
        self._shared.evaluations += evaluations

    def _indices(self, start: int, stop: int) -> slice | Tensor:
        """Indices of the samples in the data, as a slice where they are consecutive: it needs no copy."""
        chosen = self._order[start:stop]
        consecutive = bool((chosen.diff() == 1).all())
        return slice(int(chosen[0]), int(chosen[-1]) + 1) if consecutive else chosen

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within this context the model must not change: products do not compare it with the snapshot."""
        before = self._shared.fixed
        self._shared.snapshot()
        self._shared.fixed = True
        try:
            yield
        finally:
            self._shared.fixed = before

    def minibatches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[CurvatureOperator]:
        """Operators of consecutive batches of the data in one random order, repeated without end."""
        check_at_least_one(batch_size=batch_size)
        if batch_size >= len(self):  # the batch is all the data: use this operator and its graphs
            yield from itertools.repeat(self)
        order = self._order[self.shuffled(generator)]
        parts: list[CurvatureOperator] = []
        for start in range(0, len(self), batch_size):
            part = copy.copy(self)
            part._order, part._kept = order[start : start + batch_size], {}
            parts.append(part)
            yield part
        while True:
            yield from parts

    def shuffled(self, generator: torch.Generator | None = None) -> Tensor:
        """A random permutation of the samples' indices, on the CPU."""
        drawn = torch.randperm(len(self), generator=generator).to(self.layout.device)
        return distributed.broadcast_(drawn).cpu()

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
        start = distributed.broadcast_(torch.randn(self.layout.size, generator=generator).to(self._like()))
        with self.fixed():
            return lanczos(lambda row: self.products(row[None])[0], start, iterations, tolerance)

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
        with self.fixed():
            for start in range(0, samples, TRACE_VECTORS_PER_PASS):
                signs = rademacher(min(TRACE_VECTORS_PER_PASS, samples - start), self.layout.size, generator)
                z = distributed.broadcast_(signs.to(self._like()))
                total += float((z * self.products(z)).sum(dtype=torch.float64))
        return total / samples

    def _like(self) -> Tensor:
        return torch.empty(0, dtype=self.layout.dtype, device=self.layout.device)


class _SharedState:
    """State that an operator and the operators of its mini-batches share."""

    def __init__(self, model: nn.Module, prefix: nn.Module | None, names: list[str], loss_fn: Loss):
        self.model, self.names, self.loss = model, names, SampleLoss(loss_fn)
        self._lent = lent(model)
        self._softmax = is_softmax_regression(model, names, loss_fn)
        self._prefix = None if prefix is None else (prefix, Snapshot(prefix, []))
        self.evaluations = 0
        self.fixed = False
        self._keeps = True
        self._snapshot: Snapshot | None = None
        self._image_order = ImageOrder(self._lent)
        self._use_channels_last = True
        self._kept: weakref.WeakKeyDictionary[BatchCurvature, int] = weakref.WeakKeyDictionary()  # with their bytes
        self._bytes_per_sample: float | None = None
        self._budget = 0.0

    @property
    def softmax(self) -> bool:
        """Whether products have the closed form of softmax regression, which is implemented for a single process."""
        return self._softmax and distributed.processes() == 1

    def snapshot(self) -> Snapshot:
        """A snapshot of the model as it is now; the same object as long as the model does not change."""
        if self._snapshot is not None and self.fixed:
            return self._snapshot
        check_gradients_possible()
        check_deterministic(self.model)
        if self._prefix is not None and not self._prefix[1].is_current(self._prefix[0]):
            raise ValueError(
                "model: the part before the chosen parameters has changed, but its outputs are kept from before; "
                "make a new operator"
            )
        if self._snapshot is None or not self._snapshot.is_current(self.model):
            self._snapshot = Snapshot(self.model, self.names)
        return self._snapshot

    def with_own_leaves(self, keep: bool) -> _SharedState:
        """A copy at the model's present parameters, with new leaves; `keep` says whether it keeps graphs."""
        other = copy.copy(self)
        other._snapshot, other.fixed, other._keeps = self.snapshot().with_own_leaves(), True, keep
        return other

    def curvature_of_batch(
        self, kind: type[RecordedBatch], snapshot: Snapshot, x: Nest, y: Nest, samples: int
    ) -> BatchCurvature:
        device = model_device(self.model)
        x, y = moved(x, device), moved(y, device)
        closed_form = SoftmaxRegression.of(snapshot, x, y, samples) if self.softmax else None
        if closed_form is not None:
            return closed_form
        if not (self._use_channels_last and device.type == "cpu" and self._image_order.taken(x)):
            return kind(self._lent, self.loss, snapshot, x, y, samples, use_channels_last=False)
        try:
            return kind(self._lent, self.loss, snapshot, x, y, samples, use_channels_last=True)
        except RuntimeError:  # some models need contiguous inputs
            batch = kind(self._lent, self.loss, snapshot, x, y, samples, use_channels_last=False)
            self._use_channels_last = False  # set only here: without channels-last the same batch worked
            return batch

    def keep(self, batch: BatchCurvature, samples: int) -> bool:
        """Keep the batch if there is memory for it, and return whether it is kept."""
        if not self._keeps:
            return False
        if self._bytes_per_sample is None:
            self._bytes_per_sample = batch.bytes() / samples
            self._budget = KEPT_MEMORY_FRACTION * free_bytes(model_device(self.model))
        if not self.has_room(samples):
            return False
        self._kept[batch] = self._bytes(samples)
        return True

    def has_room(self, samples: int) -> bool:
        """Whether there is memory to keep this many more samples; known once a first batch has been measured."""
        return sum(self._kept.values()) + self._bytes(samples) <= self._budget

    def _bytes(self, samples: int) -> int:
        return int((self._bytes_per_sample or 0.0) * samples)
