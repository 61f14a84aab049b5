"""LiSSA's iterations on a GPU without waiting for the host: the stopping rule, too, is evaluated on the GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unlearnx.curvature.rows import CurvatureRows
from unlearnx.curvature.solvers.cuda_graph import Replay, side_stream
from unlearnx.curvature.solvers.stopping import Progress
from unlearnx.ops.lissa_step import lissa_step_

HOST_CHECK_EVERY = 16  # iterations after which the host reads the updates


@torch.no_grad()
def iterate_on_device(progress: Progress, batches: Batches, h: Tensor, damping: float) -> None:
    """Iterate ``h <- v + (1 - damping) h - C h / scale`` in place, h (K, P), until the run is over.

    Every right-hand side stops at the same iteration, with the same counts, as if the host had read each update. Where
    iterations cannot be captured in a CUDA graph, it returns before the run is over; the host's loop is faster then.
    """
    with side_stream(h.device):
        while not progress.over:
            if not _until_half_have_stopped(progress, batches, h, damping):
                break


def _until_half_have_stopped(progress: Progress, batches: Batches, h: Tensor, damping: float) -> bool:
    """Iterate the active rows of `h`; rows that stop still take part in the products, until half of them have stopped.

    Returns False where iterations cannot be captured in a CUDA graph.
    """
    state = DeviceState(progress, h, damping)
    replay = Replay(lambda: state.step(batches.whole), h.device)
    while not (progress.over or replay.failed) and len(progress.active) > len(state.indices) // 2:
        start = progress.iteration
        stop = min(start + HOST_CHECK_EVERY, progress.depth)
        for i in range(start, stop):
            if batches.load(i):
                replay()
            else:
                state.step(batches.rest)
        for i, updates in zip(range(start, stop), state.updates(stop - start), strict=True):
            progress.system.operator.count(batches.size(i) * len(progress.active))
            decided_by_residual = progress.record(updates, h)
            if decided_by_residual:
                state.resume(progress)
            if decided_by_residual or not progress.active:  # nothing has changed on the device since
                break
    return not replay.failed


class Batches:
    """The batches of :meth:`CurvatureRows.minibatches`, copied one by one to memory at a fixed address.

    Args:
        operator: the operator of all samples.
        data: (x, y) of all samples, on the operator's device.
        batch_size: samples in a batch.
        generator: CPU generator of the order of the samples.

    Attributes:
        whole: the operator of the batch that was loaded.
        rest: the operator of the smaller batch at the end of each pass over the data, if there is one.
    """

    def __init__(
        self,
        operator: CurvatureRows,
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
        """Load the batch of iteration i into :attr:`whole`; return False where it is :attr:`rest` instead."""
        if self._loaded is self._data:
            return True
        part = self._parts[i % len(self._parts)]
        if len(part) < len(self._loaded[0]):
            return False
        for loaded, samples in zip(self._loaded, self._data, strict=True):
            loaded.copy_(samples.index_select(0, part))
        return True


class DeviceState:
    """The active right-hand sides of a run, with the state of their stopping rules, in tensors on the device.

    A right-hand side that has stopped keeps its h. When an update reaches its ``update_target``, all right-hand sides
    halt until the host has computed the residual; iterations that were launched meanwhile change nothing.

    Args:
        progress: of the run.
        h: iterates (K, P) of all right-hand sides, changed in place.
        damping: coefficient of the iteration.

    Attributes:
        indices: indices of these right-hand sides among all K.
    """

    def __init__(self, progress: Progress, h: Tensor, damping: float):
        system = progress.system
        self.indices, self._all = list(progress.active), len(h)
        self._h, self._v = [h[k] for k in self.indices], [system.v[k] for k in self.indices]
        self._layout, self._damping, self._scale = system.operator.layout, damping, system.scale
        self._patience = progress.rules[0].patience
        numbers = torch.zeros(len(self.indices), dtype=torch.float64, device=h.device)
        self._update_target, self._smallest_update = numbers.clone(), numbers.clone()
        self._since_smallest, self._active = numbers.long(), numbers.bool()
        self._halted = torch.zeros((), dtype=torch.bool, device=h.device)
        self._history = numbers.expand(HOST_CHECK_EVERY, -1).clone()
        self.resume(progress)

    def resume(self, progress: Progress) -> None:
        """Copy from the host which right-hand sides are active, and the state of their stopping rules."""
        rules = [progress.rules[k] for k in self.indices]
        self._active.copy_(torch.tensor([k in progress.active for k in self.indices]))
        self._update_target.copy_(torch.tensor([rule.update_target for rule in rules], dtype=torch.float64))
        self._smallest_update.copy_(torch.tensor([rule.smallest for rule in rules], dtype=torch.float64))
        self._since_smallest.copy_(torch.tensor([rule.since_smallest for rule in rules]))
        self._halted.zero_()

    def step(self, batch: CurvatureRows) -> None:
        """One iteration, without waiting for the device. If the product raises, nothing has been changed."""
        split = self._layout.split
        products = batch.curvature([split(h) for h in self._h])
        running = self._active & ~self._halted
        steps = []
        for h, v, product, runs in zip(self._h, self._v, products, running, strict=True):
            moved = h.clone()
            steps.append(lissa_step_(split(moved, wide=True), split(v, wide=True), product, self._damping, self._scale))
            h.copy_(torch.where(runs, moved, h))
        self._apply_rules(running, torch.stack(steps).double())

    def _apply_rules(self, running: Tensor, update: Tensor) -> None:
        """``StoppingRule.reason_to_stop`` for the updates (K,) of the right-hand sides that are `running`."""
        small = running & (update <= self._update_target)
        over = (
            running
            & ~small
            & (~update.isfinite() | ((update > self._smallest_update) & (self._since_smallest >= self._patience)))
        )
        recorded = running & ~small & ~over
        smaller = recorded & (update < self._smallest_update)
        self._since_smallest.copy_(self._since_smallest.masked_fill(smaller, 1) + recorded)
        self._smallest_update.copy_(torch.where(smaller, update, self._smallest_update))
        self._active.logical_and_(~over)
        self._halted.logical_or_(small.any())
        self._history.copy_(torch.cat([self._history[1:], update.masked_fill(~running, math.nan)[None]]))

    def updates(self, count: int) -> list[list[float]]:
        """The updates of the last `count` iterations, for all K right-hand sides; NaN where there was none."""
        rows = []
        for last in self._history[-count:].tolist():
            row = [math.nan] * self._all
            for k, update in zip(self.indices, last, strict=True):
                row[k] = update
            rows.append(row)
        return rows
