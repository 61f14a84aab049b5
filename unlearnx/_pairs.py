"""Batches, whoever made them, as pairs (x, y) of nests, and how many samples there are in data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from unlearnx._batches import Nest, count, taken_apart

Pair = tuple[Nest, Nest]

LABELS = "labels"  # the entry of a mapping that goes to the loss, not to the model


def size(data: Any) -> int:
    """Number of samples.

    Raises:
        ValueError: there are none, or they cannot be counted.
    """
    source = data.dataset if isinstance(data, DataLoader) else data
    batch = isinstance(source, (tuple, list, Mapping))
    readable = batch or isinstance(source, Dataset) or hasattr(source, "__getitem__")
    if not readable or isinstance(source, (Tensor, str)):
        raise ValueError(f"data: expected a pair (x, y), a Dataset or a DataLoader, got {type(source).__name__}")
    if isinstance(source, IterableDataset):
        raise ValueError(
            f"data: {type(source).__name__} is an IterableDataset, whose samples cannot be read by their index, "
            "expected a Dataset with __getitem__ and __len__"
        )
    if not hasattr(source, "__len__"):
        raise ValueError(f"data: {type(source).__name__} has no length, expected a Dataset with __len__")
    n = count(checked(source)[1]) if batch else len(source)  # type: ignore[arg-type]
    if n == 0:
        raise ValueError("data: is empty, expected at least one sample")
    return n


def checked(batch: Any) -> Pair:
    """Samples in a batch, whoever made it, as (x, y)."""
    batch = _plain(batch)
    if isinstance(batch, dict):
        if LABELS not in batch:
            raise ValueError(
                f"data: expected samples (x, y), or mappings with the entry {LABELS!r}, got entries {', '.join(batch)}"
            )
        x, y = {name: value for name, value in batch.items() if name != LABELS}, batch[LABELS]
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        x, y = batch
    else:
        what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(f"data: expected samples (x, y), got a {what}")
    if not all(isinstance(t, (Tensor, tuple, list, dict)) for t in (x, y)):
        kinds = [type(t).__name__ for t in (x, y)]
        raise ValueError(f"data: expected a pair (x, y) of tensors, or of nests of tensors, got {kinds}")
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        n, labels = x.shape[:1], y.shape[:1]
        if not n or not labels:
            raise ValueError(
                f"data: expected x and y with a row a sample, got shapes {list(x.shape)} and {list(y.shape)}"
            )
    else:
        n, labels = (torch.Size([_rows(name, nest)]) for name, nest in (("x", x), ("y", y)))
    if n != labels:
        raise ValueError(f"data: expected as many labels as samples, got {n[0]} samples in x and {labels[0]} in y")
    return x, y


def _plain(nest: Any) -> Any:
    """The nest with dictionaries in place of other mappings, such as what tokenizers of HuggingFace return."""
    if isinstance(nest, Mapping):
        return {str(name): _plain(value) for name, value in nest.items()}
    if type(nest) in (tuple, list):
        return type(nest)(_plain(value) for value in nest)
    return nest


def _rows(name: str, nest: Nest) -> int:
    """Number of samples in x or y."""
    n = count(nest)
    if n == 0 and not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in taken_apart(nest)[0]):
        raise ValueError(f"data: expected tensors with a row a sample in {name}, got a {_described(nest)}")
    for path, leaf in leaves(name, nest):
        outermost = path.count("[") <= 1
        if isinstance(leaf, Tensor):
            if leaf.dim() and len(leaf) not in (1, n):
                raise ValueError(
                    f"data: {path} has a first dimension of {len(leaf)}, expected {n} samples as elsewhere; expand "
                    "what is the same for all samples to a row for each"
                )
        elif not (outermost and (leaf is None or isinstance(leaf, (bool, int, float)))):
            raise ValueError(f"data: {path} is a {_described(leaf)}, expected a tensor with a row a sample")
    return n


def _described(value: Any) -> str:
    return (
        f"{type(value).__name__} of {len(value)}"
        if isinstance(value, (tuple, list, dict, str))
        else type(value).__name__
    )


def leaves(path: str, nest: Nest) -> Iterator[tuple[str, Any]]:
    """The leaves of a nest with what a reader would write to reach them."""
    if isinstance(nest, dict):
        for name, value in nest.items():
            yield from leaves(f"{path}[{name!r}]", value)
    elif isinstance(nest, (tuple, list)):
        for i, value in enumerate(nest):
            yield from leaves(f"{path}[{i}]", value)
    else:
        yield path, nest
