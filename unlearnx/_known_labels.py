"""The labels of a dataset, without its samples where it tells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from unlearnx._batches import Nest, equal, joined
from unlearnx._data import BATCH_SIZE, Data, as_dataset, batches, size
from unlearnx._sources import Loaded, Samples

NAMES = ("targets", "labels")  # of the attributes by which datasets, as those of torchvision, tell their labels
DRAWN = 5_000  # samples that are read in the dataset's order, of random ones
COMPARED = 8  # samples whose labels are compared with those that a dataset tells


def all_labels(data: Data) -> Nest:
    """The labels of all samples, in order; the samples are read only where the dataset does not tell its labels."""
    known = known_labels(data)
    return joined([y for _, y in batches(data, title="labels")]) if known is None else known


def label_batches(data: Data, batch_size: int | None = None) -> Iterator[Nest]:
    """The labels of all samples, in batches: one of all where the dataset tells them, else as samples are read.

    These are read in a random order, so that who looks for a label has to read few of them if it is frequent.
    """
    known, samples = known_labels(data), Samples(data)
    if samples.in_memory:
        yield known
        return
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    if known is not None and equal(samples.read(order[:COMPARED])[1], known[order[:COMPARED]]):
        yield known
        return  # otherwise a subclass gives other labels than those that it has inherited
    for part in order.split(DRAWN):
        yield from (y for _, y in samples.batches(part.sort().values.split(batch_size or BATCH_SIZE)))


def known_labels(data: Data) -> Nest | None:
    """The labels of all samples where they can be known without reading any, else None."""
    if isinstance(data, (tuple, list, Mapping)) or Samples(data).in_memory:
        samples = Samples(data)
        return samples.read(slice(0, len(samples)))[1]
    return _told(as_dataset(data))


def _told(dataset: Dataset[Any]) -> Tensor | None:
    if type(dataset) is Subset:
        base = _told(dataset.dataset)
        return None if base is None else base[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if type(dataset) is ConcatDataset:
        parts = [_told(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if isinstance(dataset, Loaded):
        return _told(dataset.dataset)
    for name in NAMES:
        labels = _classes(getattr(dataset, name, None), size(dataset))
        if labels is not None:
            return _transformed(labels, getattr(dataset, "target_transform", None))
    return None


def _classes(given: Any, n: int) -> Tensor | None:
    """Class numbers (n,) as int64; None where these are something else."""
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return labels.long() if whole and labels.shape == (n,) else None


def _transformed(labels: Tensor, transform: Any) -> Tensor | None:
    """The labels as a dataset of torchvision gives them to its user."""
    if transform is None:
        return labels
    classes, place = labels.unique(return_inverse=True)
    found = _classes([transform(c) for c in classes.tolist()], len(classes))
    return None if found is None else found[place]
