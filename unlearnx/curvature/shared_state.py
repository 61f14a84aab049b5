"""State that the curvature of all data shares with that of mini-batches."""

from __future__ import annotations

import copy
import weakref
from functools import partial

from torch import nn

from unlearnx import _distributed as distributed
from unlearnx._batches import Nest, moved, take
from unlearnx._checks import check_deterministic, model_device
from unlearnx._copies import lent
from unlearnx._losses import Loss, SampleLoss
from unlearnx._memory import free_bytes
from unlearnx._memory_order import ImageOrder
from unlearnx._models import check_gradients_possible
from unlearnx.curvature.batch_curvature import BatchCurvature, GaussNewton, RecordedBatch, Snapshot
from unlearnx.curvature.softmax_head import SoftmaxRegression, is_softmax_regression

# Part of the free memory that the batches' graphs may take. While they do, there is room for another batch at work: its
# graph, which takes as much at most, and what a product with it computes in between.
KEPT_MEMORY_FRACTION = 1 / 3


class SharedState:
    """What the matrix and those of its mini-batches share: the model as it is now, and the graphs that memory holds.

    Args:
        model: with the parameters.
        prefix: the part of the model before it, whose outputs are kept.
        names: of the parameters.
        loss_fn: the loss.
    """

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
        self._looked_into = False  # whether a graph was found to have all second derivatives
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

    def with_own_leaves(self, keep: bool) -> SharedState:
        """A copy at the model's present parameters, with new leaves; `keep` says whether it keeps graphs."""
        other = copy.copy(self)
        other._snapshot, other.fixed, other._keeps = self.snapshot().with_own_leaves(), True, keep
        return other

    def curvature_of_batch(
        self, kind: type[RecordedBatch], snapshot: Snapshot, x: Nest, y: Nest, samples: int
    ) -> BatchCurvature:
        """The curvature of a batch of a mean loss over so many samples, in closed form where it has one."""
        device = model_device(self.model)
        x, y = moved(x, device), moved(y, device)
        closed_form = SoftmaxRegression.of(snapshot, x, y, samples) if self.softmax else None
        if closed_form is not None:
            return closed_form
        batch = self._recorded(kind, snapshot, x, y, samples)
        if not self._looked_into:
            batch.check_twice_differentiable()
            if batch.calls_own_functions:
                one = slice(0, 1)
                GaussNewton(
                    self._lent, self.loss, snapshot.with_own_leaves(), take(x, one), take(y, one), 1, False
                ).check_transposed()
            self._looked_into = True
        return batch

    def _recorded(self, kind: type[RecordedBatch], snapshot: Snapshot, x: Nest, y: Nest, samples: int) -> RecordedBatch:
        record = partial(kind, self._lent, self.loss, snapshot, x, y, samples, look=not self._looked_into)
        if not (self._use_channels_last and model_device(self.model).type == "cpu" and self._image_order.taken(x)):
            return record(use_channels_last=False)
        try:
            return record(use_channels_last=True)
        except RuntimeError:  # some models need contiguous inputs
            batch = record(use_channels_last=False)
            self._use_channels_last = False  # set only here: without channels-last the same batch worked
            return batch

    def keep(self, batch: BatchCurvature, samples: int) -> bool:
        """Keep the batch if there is memory for it, and return whether it is kept."""
        if not self._keeps:
            return False
        if self._bytes_per_sample is None:
            own = batch.bytes()
            self._bytes_per_sample = own / samples
            self._budget = KEPT_MEMORY_FRACTION * (own + free_bytes(model_device(self.model)))  # free before the batch
        if not self.has_room(samples):
            return False
        self._kept[batch] = self._bytes(samples)
        return True

    def has_room(self, samples: int) -> bool:
        """Whether there is memory to keep this many more samples; known once a first batch has been measured."""
        return sum(self._kept.values()) + self._bytes(samples) <= self._budget

    def _bytes(self, samples: int) -> int:
        return int((self._bytes_per_sample or 0.0) * samples)
