"""Requests: the samples that a model is asked to forget or to correct."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from unlearnx._arguments import checked
from unlearnx._batches import differing, tensors
from unlearnx._checks import integers, known_as
from unlearnx._data import Data, as_dataset, batches, left_of, size
from unlearnx._known_labels import all_labels
from unlearnx._sources import Samples


@dataclass(frozen=True)
class Request:
    """Samples to forget, or to replace by corrected ones.

    Create one by :meth:`remove`, :meth:`remove_class`, :meth:`correct` or :meth:`from_sets`.

    Samples are read a batch at a time when they are needed, so that the data may be larger than memory.

    Attributes:
        dataset: the data that the model was trained on, as they are measured: without augmentation.
        forget: indices of the forget set, ascending, int64.
        corrected: the same data with the forget set corrected; None for a removal.
        labels_only: whether the correction changes labels only, no features.
        held_out: samples of the kind that stays that the model has not seen; see :meth:`with_held_out`.
        augmented: what training passes read in the place of `dataset`, or in a correction of `corrected`; None for
            the same.

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
    augmented: Dataset[Any] | None = None
    held_out: Dataset[Any] | None = None

    @checked
    def with_held_out(self, data: Data) -> Request:
        """The same request with samples that the model has not seen, such as test data.

        They tell what a model does on samples that it never saw, so that methods know better when to stop, and verdicts
        say more. Nothing is trained on them.

        Without a retain set they stand for what stays, and harm is measured on them: they must not hold samples of a
        class that goes as a whole.

        Raises:
            ValueError: there are none, or the data is not made of samples.
        """
        held_out = as_dataset(data)
        size(held_out)
        return replace(self, held_out=held_out)

    @classmethod
    @checked
    def remove(cls, dataset: Data, indices: Collection[int] | Tensor, *, measure: Data | None = None) -> Request:
        """Forget the samples at `indices` of `dataset`.

        Args:
            dataset: the data that the model was trained on: batched tensors, a Dataset, or a DataLoader, which stands
                for its dataset, read by its workers.
            indices: of the samples to forget.
            measure: the same samples without augmentation, where those of `dataset` come augmented, another time each
                time they are read. Training passes then read `dataset`, and all others `measure`.

        Raises:
            ValueError: no indices, all of them, indices out of range or given twice; or `measure` has another size.
        """
        data, augmented = _measured_and_augmented("dataset", dataset, measure)
        n = size(data)
        forget = integers("indices", indices).sort().values
        if len(forget) == 0:
            raise ValueError("indices: is empty, expected at least one sample to forget")
        if forget[0] < 0 or forget[-1] >= n:
            outside = int(forget[0] if forget[0] < 0 else forget[-1])
            raise ValueError(f"indices: {outside} is out of range for {n} samples")
        repeated = (forget[1:] == forget[:-1]).nonzero()
        if len(repeated):
            raise ValueError(f"indices: sample {int(forget[repeated[0]])} is given twice")
        if len(forget) == n:
            raise ValueError(f"indices: contains all {n} samples, expected fewer: the retain set would be empty")
        return cls(data, forget, augmented=augmented)

    @classmethod
    @checked
    def remove_class(cls, dataset: Data, c: int, *, measure: Data | None = None) -> Request:
        """Forget all samples with label `c`.

        Where the dataset has its labels as ``targets`` or ``labels``, as those of torchvision, no sample is read.

        Args:
            dataset, measure: as for :meth:`remove`.
            c: the label.

        Raises:
            TypeError: `c` is no integer.
            ValueError: no sample or every sample has that label, or samples have several labels; and as for
                :meth:`remove`.
        """
        # Of a DataLoader, its dataset: the loader may shuffle, and indices refer to the dataset.
        labels = all_labels(as_dataset(dataset if measure is None else measure))
        if not isinstance(labels, Tensor):
            raise ValueError(f"dataset: has labels of type {type(labels).__name__}, expected one label per sample")
        if labels.dim() != 1:
            raise ValueError(f"dataset: has labels of shape {list(labels.shape)}, expected one label per sample")
        members = (labels == int(c)).nonzero().flatten()
        if len(members) == 0:
            raise ValueError(f"c: no sample has label {c}; the labels are {sorted(labels.unique().tolist())}")
        return cls.remove(dataset, members, measure=measure)

    @classmethod
    @checked
    def correct(cls, dataset: Data, corrected: Data, *, measure: Data | None = None) -> Request:
        """Replace the samples of `dataset` that differ from those of `corrected`, which has the same order.

        Args:
            dataset: the data that the model was trained on, without augmentation.
            corrected: the same data with some samples corrected.
            measure: the same samples as those of `corrected` without augmentation, where these come augmented. Training
                passes then read `corrected`, and all others `measure`, which also tells what differs.

        Raises:
            ValueError: sizes or shapes differ, or no sample differs.
        """
        data = as_dataset(dataset)
        fixed, augmented = _measured_and_augmented("corrected", corrected, measure)
        if size(data) != size(fixed):
            raise ValueError(f"corrected: has {size(fixed)} samples, expected {size(data)} as dataset")
        labels_changed, features_changed = [], []
        for (x, y), (x_new, y_new) in zip(batches(data, title="comparison"), batches(fixed), strict=True):
            features_changed.append(differing(x, x_new))
            labels_changed.append(differing(y, y_new))
        changes_features = torch.cat(features_changed)
        forget = (torch.cat(labels_changed) | changes_features).nonzero().flatten()
        if len(forget) == 0:
            raise ValueError("corrected: equals dataset, expected at least one sample that differs")
        return cls(data, forget, fixed, not bool(changes_features.any()), augmented)

    @classmethod
    @checked
    def from_sets(cls, *, forget: Data, retain: Data | None = None, correction: Data | None = None) -> Request:
        """Forget the samples of one set and retain those of another; the dataset is both, the forget set first.

        Without a retain set, methods that are given ``factors`` of the training data can forget, and no others.

        Args:
            forget: the forget set as the model was trained on it: tensors, a Dataset, or a DataLoader, of which the
                dataset is used.
            retain: the retain set; None where it is not at hand.
            correction: the corrected samples of the forget set, in the same order, which takes a retain set; None for a
                removal.

        Raises:
            ValueError: a set is empty, the sets share samples, or the correction has another size or shape.
        """
        forgotten = as_dataset(forget)
        n = size(forgotten)
        if retain is None:
            if correction is not None:
                raise ValueError("correction: is given without a retain set, expected both or neither")
            return cls(forgotten, torch.arange(n))
        retained = as_dataset(retain)
        shared = _shared(forgotten, retained)
        if shared:
            raise ValueError(
                f"retain: holds {shared} of the {n} samples of forget, expected none; if the dataset has duplicates "
                "of which only some are to be forgotten, use Request.remove(dataset, indices)"
            )
        if correction is None:
            return cls.remove(_both(forgotten, retained), range(n))
        fixed = as_dataset(correction)
        if size(fixed) != n:
            raise ValueError(f"correction: has {size(fixed)} samples, expected {n} as forget")
        with known_as(corrected="correction", dataset="forget"):
            labels_only = cls.correct(forgotten, fixed).labels_only
        return cls(_both(forgotten, retained), torch.arange(n), _both(fixed, retained), labels_only)

    @property
    def samples(self) -> int:
        """Number of samples in the dataset."""
        return size(self.dataset)

    @property
    def has_retain_set(self) -> bool:
        """Whether the dataset holds more than the forget set."""
        return self.corrected is not None or len(self.forget) < self.samples

    @property
    def something_stays(self) -> bool:
        """Whether :attr:`target` has samples to measure harm on."""
        return self.has_retain_set or self.held_out is not None

    @property
    def retain(self) -> Tensor:
        """Indices of the retain set, ascending."""
        return left_of(size(self.dataset), self.forget)

    @property
    def forget_set(self) -> Dataset[Any]:
        """The forget set, as the model was trained on it."""
        return Subset(self.dataset, self.forget.tolist())

    @property
    def retain_set(self) -> Dataset[Any]:
        """The samples that are neither removed nor corrected."""
        return Subset(self.dataset, self.retain.tolist())

    @property
    def correction(self) -> Dataset[Any] | None:
        """The corrected samples of the forget set; None for a removal."""
        return None if self.corrected is None else Subset(self.corrected, self.forget.tolist())

    @property
    def target(self) -> Dataset[Any]:
        """The data that retraining would use: the corrected data, or the retain set.

        Where there is none, the held-out data, or nothing.
        """
        if not self.has_retain_set and self.held_out is not None:
            return self.held_out
        return self.retain_set if self.corrected is None else self.corrected

    @property
    def trained_target(self) -> Dataset[Any]:
        """The same as training passes read it: augmented, where the request knows how."""
        if self.augmented is None:
            return self.target
        return Subset(self.augmented, self.retain.tolist()) if self.corrected is None else self.augmented

    @property
    def trained_forget_set(self) -> Dataset[Any]:
        """The forget set, as the model was trained on it, as training passes read it."""
        if self.augmented is None or self.corrected is not None:
            return self.forget_set
        return Subset(self.augmented, self.forget.tolist())


def _measured_and_augmented(name: str, dataset: Data, measure: Data | None) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """What to measure on, and what to train on where that is something else."""
    data = as_dataset(dataset)
    if measure is None:
        return data, None
    plain = as_dataset(measure)
    if size(plain) != size(data):
        raise ValueError(f"measure: has {size(plain)} samples, expected {size(data)} as {name}")
    both = Samples(plain), Samples(data)
    if all(samples.in_memory for samples in both):
        shapes = [[list(t.shape[1:]) for t in tensors(samples.read(slice(0, 1)))] for samples in both]
        if shapes[0] != shapes[1]:
            raise ValueError(f"measure: has samples (x, y) of shapes {shapes[0]}, expected {shapes[1]} as {name}")
    return plain, data


def _shared(a: Dataset[Any], b: Dataset[Any]) -> int:
    """How many samples of `a` are also in `b`; 0 where that cannot be found without reading samples one by one."""
    if isinstance(a, Subset) and isinstance(b, Subset) and a.dataset is b.dataset:
        return len(set(a.indices) & set(b.indices))
    if a is b:
        return size(a)
    if type(a) is not TensorDataset or type(b) is not TensorDataset:
        return 0
    known = set(_sample_hashes(b))
    return sum(f in known for f in _sample_hashes(a))


def _sample_hashes(data: TensorDataset) -> list[int]:
    samples = zip(*(t.cpu() for t in data.tensors), strict=True)
    return [hash(tuple(t.numpy().tobytes() for t in sample)) for sample in samples]


def _both(a: Dataset[Any], b: Dataset[Any]) -> Dataset[Any]:
    if type(a) is TensorDataset and type(b) is TensorDataset:
        shapes = [[list(t.shape[1:]) for t in data.tensors] for data in (a, b)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"forget: has samples (x, y) of shapes {shapes[0]}, expected {shapes[1]} as retain")
    return ConcatDataset([a, b])
