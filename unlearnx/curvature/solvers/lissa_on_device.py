"""LiSSA on a device that runs ahead of its host: the rule to stop is applied there, the host looks now and then."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearnx.curvature.operators import CurvatureOperator
from unlearnx.curvature.solvers.cuda_graph import Replay, own_stream
from unlearnx.ops.lissa_step import lissa_step_

if TYPE_CHECKING:
    from unlearnx.curvature.solvers.lissa import _Progress

LOOK = 16  # iterations between two looks


@torch.no_grad()
def iterate_on_device(progress: _Progress, batches: Batches, h: Tensor, damping: float) -> None:
    """Iterate ``h <- v + (1 - damping) h - C h / scale`` in place, h (K, P), until the run is over.

    Every right-hand side stops, and is counted, as if the host had looked at each of its updates. Where iterations
    cannot be captured it returns before the run is over: on graphs that are kept, the host is faster.
    """
    with own_stream(h.device):
        while not progress.over:
            if not _until_half_have_stopped(progress, batches, h, damping):
                break


def _until_half_have_stopped(progress: _Progress, batches: Batches, h: Tensor, damping: float) -> bool:
    """Go on with the active rows of `h`: those that stop cost their products until half of them have.

    Returns False where iterations cannot be captured.
    """
    rows = Rows(progress, h, damping)
    replay = Replay(lambda: rows.step(batches.whole), h.device)
    while not (progress.over or replay.failed) and len(progress.active) > len(rows.sides) // 2:
        start = progress.iteration
        stop = min(start + LOOK, progress.depth)
        for i in range(start, stop):
            if batches.load(i):
                replay()
            else:
                rows.step(batches.rest)
        for i, updates in zip(range(start, stop), rows.updates(stop - start), strict=True):
            progress.solving.operator.count(batches.size(i) * len(progress.active))
            waiting = progress.note(updates, h)
            if waiting:
                rows.resume(progress)
            if waiting or not progress.active:  # the device has changed nothing since
                break
    return not replay.failed


class Batches:
    """The batches of a run, those of :meth:`CurvatureOperator.minibatches`, in memory that stays in its place.

    Args:
        operator: of all samples.
        data: (x, y) of all of them, on its device.
        batch_size: samples in a batch.
        generator: of their order.

    Attributes:
        whole: the operator of the batch that was loaded.
        rest: the operator of the samples that remain at the end of each pass over the data, if there are any.
    """

    def __init__(
        self,
        operator: CurvatureOperator,
        data: tuple[Tensor, Tensor],
        batch_size: int,
        generator: torch.Generator,
    ):
        self._data, n = data, len(operator)
        if batch_size >= n:
            self._parts: tuple[Tensor, ...] = (torch.arange(n),)
            self._loaded = self._data
            self.whole = operator.of(*self._loaded, keep=True)
            return
        self._parts = operator.shuffled(generator).to(operator.layout.device).split(batch_size)
        self._loaded = data[0][:batch_size].clone(), data[1][:batch_size].clone()
        self.whole = operator.of(*self._loaded, keep=False)
        if n % batch_size:
            self.rest = operator.of(data[0][self._parts[-1]], data[1][self._parts[-1]], keep=False)

    def size(self, i: int) -> int:
        """Samples in the batch of iteration i."""
        return len(self._parts[i % len(self._parts)])

    def load(self, i: int) -> bool:
        """Make the batch of iteration i that of :attr:`whole`; False where it is the :attr:`rest`."""
        if self._loaded is self._data:
            return True
        part = self._parts[i % len(self._parts)]
        if len(part) < len(self._loaded[0]):
            return False
        for loaded, samples in zip(self._loaded, self._data, strict=True):
            loaded.copy_(samples.index_select(0, part))
        return True


class Rows:
    """The active right-hand sides of a run with all that decides about them, to be iterated without the host.

    One that has stopped keeps its h. Where an update is as small as a right-hand side waits for, all of them halt: the
    host then takes a residual. Whatever runs after that changes nothing.

    Args:
        progress: of the run.
        h: estimates (K, P) of all right-hand sides, which are changed in place.
        damping: coefficient of the iteration.

    Attributes:
        sides: numbers of the right-hand sides.
    """

    def __init__(self, progress: _Progress, h: Tensor, damping: float):
        solving = progress.solving
        self.sides, self._count = list(progress.active), len(h)
        self._h, self._v = [h[k] for k in self.sides], [solving.v[k] for k in self.sides]
        self._layout, self._damping, self._scale = solving.operator.layout, damping, solving.scale
        self._patience = progress.runs[0].patience
        numbers = torch.zeros(len(self.sides), dtype=torch.float64, device=h.device)
        self._enough, self._smallest = numbers.clone(), numbers.clone()
        self._since, self._active = numbers.long(), numbers.bool()
        self._halted = torch.zeros((), dtype=torch.bool, device=h.device)
        self._history = numbers.expand(LOOK, -1).clone()
        self.resume(progress)

    def resume(self, progress: _Progress) -> None:
        """Take over from the host which right-hand sides go on, and what their updates were."""
        runs = [progress.runs[k] for k in self.sides]
        self._active.copy_(torch.tensor([k in progress.active for k in self.sides]))
        self._enough.copy_(torch.tensor([run.enough for run in runs], dtype=torch.float64))
        self._smallest.copy_(torch.tensor([run.smallest for run in runs], dtype=torch.float64))
        self._since.copy_(torch.tensor([run.since_smallest for run in runs]))
        self._halted.zero_()

    def step(self, batch: CurvatureOperator) -> None:
        """One iteration, which does not wait for the device. Where the product raises, nothing has changed."""
        split = self._layout.split
        products = batch.curvature([split(h) for h in self._h])
        running = self._active & ~self._halted
        steps = []
        for h, v, product, runs in zip(self._h, self._v, products, running, strict=True):
            moved = h.clone()
            steps.append(lissa_step_(split(moved, wide=True), split(v, wide=True), product, self._damping, self._scale))
            h.copy_(torch.where(runs, moved, h))
        self._note(running, torch.stack(steps).double())

    def _note(self, running: Tensor, update: Tensor) -> None:
        """``_Run.reason_to_stop`` of `update` (K,), for those that are `running`."""
        small = running & (update <= self._enough)
        over = running & ~small & (~update.isfinite() | ((update > self._smallest) & (self._since >= self._patience)))
        noted = running & ~small & ~over
        smaller = noted & (update < self._smallest)
        self._since.copy_(self._since.masked_fill(smaller, 1) + noted)
        self._smallest.copy_(torch.where(smaller, update, self._smallest))
        self._active.logical_and_(~over)
        self._halted.logical_or_(small.any())
        self._history.copy_(torch.cat([self._history[1:], update.masked_fill(~running, math.nan)[None]]))

    def updates(self, count: int) -> list[list[float]]:
        """Those of the last iterations, `count` of them, for all right-hand sides; NaN where there was none."""
        rows = []
        for last in self._history[-count:].tolist():
            row = [math.nan] * self._count
            for k, update in zip(self.sides, last, strict=True):
                row[k] = update
            rows.append(row)
        return rows
