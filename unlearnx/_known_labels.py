"""The labels of a dataset, without its samples where it tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from unlearnx._batches import Nest, equal, joined
from unlearnx._data import BATCH_SIZE, Data, as_dataset, batches, size
from unlearnx._sources import Loaded, Samples

NAMES = ("targets", "labels")  # of the attributes by which datasets, as those of torchvision, tell their labels
DRAWN = 5_000  # labels that are read where a dataset does not tell them and not all are needed
COMPARED = 8  # samples whose labels are compared with those that a dataset tells


def all_labels(data: Data) -> Nest:
    """The labels of all samples, in order; the samples are read only where the dataset does not tell its labels."""
    known = known_labels(data)
    return joined([y for _, y in batches(data, title="labels")]) if known is None else known


def drawn_labels(data: Data, batch_size: int | None = None) -> list[Nest]:
    """The labels of all samples where the dataset tells them, and otherwise of some, drawn at random.

    They come in batches, since those of samples of different lengths do not fit together.
    """
    known, samples = known_labels(data), Samples(data)
    if samples.in_memory:
        return [known]
    index = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    if known is not None and equal(samples.read(index[:COMPARED])[1], known[index[:COMPARED]]):
        return [known]  # otherwise a subclass gives other labels than those that it has inherited
    return [y for _, y in samples.batches(index[:DRAWN].sort().values.split(batch_size or BATCH_SIZE))]


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
