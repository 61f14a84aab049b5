"""What a model is asked to forget or to correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from unlearnx._data import Data, batches, materialize, size
from unlearnx.curvature.prefix import FrozenPrefix


@dataclass(frozen=True)
class Request:
    """Points to remove from what a model has learned, or to replace by corrected ones.

    Make one by :meth:`remove`, :meth:`remove_class` or :meth:`correct`.

    Attributes:
        dataset: what the model was trained on.
        forget: indices of the points to forget, ascending, int64.
        corrected: the same data with those points as they should have been, or None for a removal.
        labels_only: whether the correction leaves all features as they are.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> request = Request.remove_class((x, y), 2)
        >>> request.forget[:3], len(request.retain_set)
        (tensor([2, 5, 8]), 40)
        >>> Request.correct((x, y), (x.clamp(max=1), y)).labels_only  # features are corrected
        False
    """

    dataset: Dataset[Any]
    forget: Tensor
    corrected: Dataset[Any] | None = None
    labels_only: bool = False

    @classmethod
    def remove(cls, dataset: Data, indices: Sequence[int] | Tensor) -> Request:
        """Forget the points at `indices` of `dataset`.

        Raises:
            ValueError: no indices, all of them, indices out of range or given twice.
        """
        data = _dataset(dataset)
        n = size(data)
        forget = torch.as_tensor(indices)
        if forget.dtype == torch.bool:
            raise ValueError("indices: is a mask; pass mask.nonzero().flatten()")
        forget = forget.long().flatten().cpu().sort().values
        if len(forget) == 0:
            raise ValueError("indices: is empty, expected at least one point to forget")
        if forget[0] < 0 or forget[-1] >= n:
            outside = int(forget[0] if forget[0] < 0 else forget[-1])
            raise ValueError(f"indices: {outside} is out of range for {n} points")
        twice = (forget[1:] == forget[:-1]).nonzero()
        if len(twice):
            raise ValueError(f"indices: point {int(forget[twice[0]])} is given twice")
        if len(forget) == n:
            raise ValueError(f"indices: names all {n} points, expected some to retain")
        return cls(data, forget)

    @classmethod
    def remove_class(cls, dataset: Data, c: int) -> Request:
        """Forget every point with label `c`.

        Raises:
            ValueError: no point has that label, or all have; or points have several labels.
        """
        data = _dataset(dataset)  # a DataLoader may shuffle: indices are those of its dataset
        labels = torch.cat([y for _, y in batches(data)])
        if labels.dim() != 1:
            raise ValueError(f"dataset: has labels of shape {list(labels.shape)}, expected one a point")
        members = (labels == c).nonzero().flatten()
        if len(members) == 0:
            raise ValueError(f"c: no point has label {c}; the labels are {sorted(labels.unique().tolist())}")
        return cls.remove(data, members)

    @classmethod
    def correct(cls, dataset: Data, corrected: Data) -> Request:
        """Replace the points of `dataset` that differ from those of `corrected`, which has the same order.

        Raises:
            ValueError: the sizes or shapes differ, or nothing does.
        """
        data, fixed = _dataset(dataset), _dataset(corrected)
        if size(data) != size(fixed):
            raise ValueError(f"corrected: has {size(fixed)} points, expected {size(data)} as dataset")
        relabelled, moved = [], []
        for (x, y), (x_new, y_new) in zip(batches(data), batches(fixed), strict=True):
            if x.shape != x_new.shape or y.shape != y_new.shape:
                raise ValueError(
                    f"corrected: has points of shape {list(x_new.shape[1:])}, expected {list(x.shape[1:])} as dataset"
                )
            relabelled.append((y != y_new).reshape(len(y), -1).any(1).cpu())
            shared = x_new.data_ptr() == x.data_ptr() and x_new.stride() == x.stride()
            moved.append(
                torch.zeros(len(x), dtype=torch.bool) if shared else (x != x_new).reshape(len(x), -1).any(1).cpu()
            )
        changes_features = torch.cat(moved)
        forget = (torch.cat(relabelled) | changes_features).nonzero().flatten()
        if len(forget) == 0:
            raise ValueError("corrected: equals dataset, expected at least one point that differs")
        return cls(data, forget, fixed, labels_only=not bool(changes_features.any()))

    @classmethod
    def from_sets(cls, *, forget: Data, retain: Data, correction: Data | None = None) -> Request:
        """Forget the points of one set and keep those of another; the dataset is both, the forget set first.

        Args:
            forget: points to forget, as the model was given them: tensors, a Dataset or a DataLoader, whose dataset
                is then taken.
            retain: points that stay as they are.
            correction: the points to forget as they should have been, in the same order; None for a removal.

        Raises:
            ValueError: a set is empty, the sets share points, or the correction does not fit.
        """
        gone, stays = _dataset(forget), _dataset(retain)
        n = size(gone)
        shared = _shared(gone, stays)
        if shared:
            raise ValueError(
                f"retain: holds {shared} of the {n} points of forget, expected none; where equal points are "
                "meant, name those to forget by Request.remove(dataset, indices)"
            )
        if correction is None:
            return cls.remove(_joined(gone, stays), range(n))
        fixed = _dataset(correction)
        if size(fixed) != n:
            raise ValueError(f"correction: has {size(fixed)} points, expected {n} as forget")
        request = cls.correct(_joined(gone, stays), _joined(fixed, stays))
        return cls(request.dataset, torch.arange(n), request.corrected, request.labels_only)

    @property
    def retain(self) -> Tensor:
        """Indices of the points that stay as they are, ascending."""
        stays = torch.ones(size(self.dataset), dtype=torch.bool)
        stays[self.forget] = False
        return stays.nonzero().flatten()

    @property
    def forget_set(self) -> Dataset[Any]:
        """The points to forget, as the model was given them."""
        return Subset(self.dataset, self.forget.tolist())

    @property
    def retain_set(self) -> Dataset[Any]:
        """The points that stay as they are."""
        return Subset(self.dataset, self.retain.tolist())

    @property
    def correction(self) -> Dataset[Any] | None:
        """The points to forget as they should have been; None for a removal."""
        return None if self.corrected is None else Subset(self.corrected, self.forget.tolist())

    @property
    def target(self) -> Dataset[Any]:
        """What retraining would be given: the corrected data, or the points that stay."""
        return self.retain_set if self.corrected is None else self.corrected

    def features(
        self, cut: FrozenPrefix, *, batch_size: int | None = None, dtype: torch.dtype | None = None
    ) -> Request:
        """The same request in the features of a frozen prefix; points that were not changed are computed once."""
        if cut.prefix is None:
            return self
        before = cut.features(self.dataset, batch_size=batch_size, dtype=dtype)
        return self.on(before, cut, batch_size=batch_size, dtype=dtype)

    def on(
        self, before: Data, cut: FrozenPrefix, *, batch_size: int | None = None, dtype: torch.dtype | None = None
    ) -> Request:
        """The same request in the features of a frozen prefix, `before` being those of the dataset."""
        if cut.prefix is None:
            return self
        assert isinstance(before, TensorDataset)
        correction = self.correction
        if self.corrected is None or correction is None:
            return Request(before, self.forget)
        x, _ = before.tensors
        if not self.labels_only:
            changed, _ = materialize(cut.features(correction, batch_size=batch_size, dtype=dtype))
            x = x.clone()
            x[self.forget.to(x.device)] = changed
        labels = torch.cat([y for _, y in batches(self.corrected)])
        return Request(before, self.forget, TensorDataset(x, labels.to(x.device)), self.labels_only)


def _shared(a: Dataset[Any], b: Dataset[Any]) -> int:
    """How many points of `a` are in `b`, as far as that is seen without reading samples one by one."""
    if isinstance(a, Subset) and isinstance(b, Subset) and a.dataset is b.dataset:
        return len(set(a.indices) & set(b.indices))
    if a is b:
        return size(a)
    if type(a) is not TensorDataset or type(b) is not TensorDataset:
        return 0
    known = set(_fingerprints(b))
    return sum(f in known for f in _fingerprints(a))


def _fingerprints(data: TensorDataset) -> list[int]:
    rows = zip(*(t.cpu() for t in data.tensors), strict=True)
    return [hash(tuple(t.numpy().tobytes() for t in row)) for row in rows]


def _joined(a: Dataset[Any], b: Dataset[Any]) -> Dataset[Any]:
    if type(a) is TensorDataset and type(b) is TensorDataset:
        return TensorDataset(*(torch.cat(pair) for pair in zip(a.tensors, b.tensors, strict=True)))
    return ConcatDataset([a, b])


def _dataset(data: Data) -> Dataset[Any]:
    if isinstance(data, (tuple, list)):
        return TensorDataset(*materialize(data))
    return data.dataset if isinstance(data, DataLoader) else data
