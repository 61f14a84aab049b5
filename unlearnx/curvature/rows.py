"""The damped curvature as solvers need it: products with rows and with mini-batches, and what the data allow."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearnx import _distributed as distributed
from unlearnx._checks import Params, check_at_least_one, select_params
from unlearnx._data import BATCH_SIZE, Data, check_same_in_every_process, check_visits_all
from unlearnx._losses import Loss
from unlearnx._memory import free_bytes
from unlearnx._progress import passing
from unlearnx._sources import Samples
from unlearnx._vectors import Layout
from unlearnx.curvature.batch_curvature import CURVATURE_KINDS, BatchCurvature, Snapshot, Values
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.curvature.shared_state import KEPT_MEMORY_FRACTION, SharedState
from unlearnx.curvature.softmax_head import SAMPLES_PER_PASS, SoftmaxRegression
from unlearnx.curvature.spectrum import Spectrum, lanczos


class CurvatureRows:
    """The matrix of a :class:`unlearnx.curvature.CurvatureOperator`, multiplied with rows (K, P).

    Args:
        model, loss_fn, data, kind, damping, params, batch_size: as for the operator.

    Attributes:
        damping, kind: as given.
        names: names of the parameters.
        layout: their order in the rows.
        model: the part of the model with them.
        batch_size: samples per pass.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Data,
        *,
        kind: str,
        damping: float,
        params: Params,
        batch_size: int | None,
    ):
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
        self._shared = SharedState(self.model, frozen_prefix.prefix, self.names, loss_fn)
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
        with passing("curvature product", len(mine)) as advance, _naming_what_has_no_second_derivative():
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
        """All samples on the device of the model, so that products of :meth:`of` do not wait for the host.

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

    def of(self, x: Tensor, y: Tensor, *, keep: bool) -> CurvatureRows:
        """The curvature of samples (x, y), on the device of the model, at the model's present parameters.

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
        """Add to :attr:`evaluations` the samples of products that a solver computed by itself."""
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

    def minibatches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[CurvatureRows]:
        """The curvatures of consecutive batches of the data in one random order, repeated without end."""
        check_at_least_one(batch_size=batch_size)
        if batch_size >= len(self):  # the batch is all the data: use this object and its graphs
            yield from itertools.repeat(self)
        order = self._order[self.shuffled(generator)]
        parts: list[CurvatureRows] = []
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

    def spectrum(
        self, *, iterations: int = 50, tolerance: float = 1e-2, generator: torch.Generator | None = None
    ) -> Spectrum:
        """The smallest and the largest eigenvalue, damping included, by the Lanczos iteration."""
        start = distributed.broadcast_(torch.randn(self.layout.size, generator=generator).to(self.layout.like()))
        with self.fixed():
            return lanczos(lambda row: self.products(row[None])[0], start, iterations, tolerance)


@contextmanager
def _naming_what_has_no_second_derivative() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "derivative for" not in str(error) or "not implemented" not in str(error):
            raise
        raise ValueError(
            "model: it, or loss_fn, calls a function that torch cannot differentiate twice, expected others in its "
            f"place, since products with a curvature are second derivatives: {error}"
        ) from error
