"""Data as the engines take it: an (x, y) pair of tensors, a Dataset or a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from unlearnx import _distributed as distributed
from unlearnx._checks import check_at_least_one

Data = tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]

BATCH_SIZE = 256
UNLIKE = (DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)  # from process to process


def _tensors(data: Data) -> tuple[Tensor, Tensor] | None:
    """The whole of `data` without reading it sample by sample, where its type allows that."""
    if isinstance(data, (tuple, list)):
        pair = tuple(data)
    elif type(data) is TensorDataset:  # a subclass may transform its items
        pair = data.tensors
    elif type(data) is Subset:
        base = _tensors(data.dataset)
        if base is None:
            return None
        index = torch.as_tensor(data.indices)
        pair = tuple(t[index] for t in base)
    else:
        return None
    return _checked(pair)


def _checked(pair: Any) -> tuple[Tensor, Tensor]:
    """`pair` as (x, y): samples in a batch, whoever made it."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        what = f"{type(pair).__name__} of {len(pair)}" if isinstance(pair, (tuple, list, dict)) else type(pair).__name__
        raise ValueError(f"data: expected samples (x, y), got a {what}")
    if not all(isinstance(t, Tensor) for t in pair):
        raise ValueError(f"data: expected a pair (x, y) of tensors, got {[type(t).__name__ for t in pair]}")
    x, y = pair
    if x.dim() == 0 or y.dim() == 0:
        raise ValueError(f"data: expected x and y with a row a sample, got shapes {list(x.shape)} and {list(y.shape)}")
    if len(x) != len(y):
        raise ValueError(f"data: expected as many labels as samples, got {len(x)} samples in x and {len(y)} in y")
    return x, y


def size(data: Data) -> int:
    """Number of samples, which is never zero.

    Raises:
        ValueError: there are none.
    """
    source = data.dataset if isinstance(data, DataLoader) else data
    readable = isinstance(source, (tuple, list, Dataset)) or hasattr(source, "__getitem__")
    if not readable or isinstance(source, (Tensor, dict, str)):
        raise ValueError(f"data: expected a pair (x, y), a Dataset or a DataLoader, got {type(source).__name__}")
    if not hasattr(source, "__len__"):
        raise ValueError(f"data: {type(source).__name__} has no length, expected samples that can be counted")
    n = len(_checked(source)[0]) if isinstance(source, (tuple, list)) else len(source)  # type: ignore[arg-type]
    if n == 0:
        raise ValueError("data: is empty, expected at least one sample")
    return n


def _collate(
    dataset: Dataset[Any], indices: Sequence[int], collate: Callable[[list[Any]], Any] = default_collate
) -> tuple[Tensor, Tensor]:
    samples = [dataset[i] for i in indices]
    try:
        batch = collate(samples)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"data: expected samples that stack into a batch, got ones that do not: {error}") from error
    return _checked(batch)


def materialize(data: Data) -> tuple[Tensor, Tensor]:
    """All of `data` as one pair of tensors; no copy where it is one already."""
    size(data)
    pair = _tensors(data)
    if pair is not None:
        return pair
    parts = list(batches(data))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def check_visits_all(data: Data) -> None:
    """Refuse a DataLoader whose samples are not those of its dataset.

    Raises:
        ValueError: it may leave samples out, or repeat some.
    """
    if not isinstance(data, DataLoader):
        return
    sampler = data.sampler
    in_order = type(sampler) is SequentialSampler
    shuffled = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == size(data)
    plain = type(data.batch_sampler) is BatchSampler
    if data.drop_last or not plain or not (in_order or shuffled):
        raise ValueError(
            f"data: is a DataLoader with {type(sampler).__name__} and drop_last={data.drop_last}, expected one that "
            "visits each sample once; pass its dataset, or a Subset of it"
        )


def check_in_order(name: str, data: Data) -> None:
    """Refuse a DataLoader whose n-th sample may not be the n-th of its dataset: results for samples go by number.

    Raises:
        ValueError: it shuffles, leaves samples out or repeats some.
    """
    check_visits_all(data)
    if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler):
        raise ValueError(f"{name}: is a DataLoader that shuffles, whose samples have no numbers; pass its dataset")


class Samples:
    """The samples of `data` by number, read when they are asked for; of a DataLoader, those of its dataset."""

    def __init__(self, data: Data):
        self._n = size(data)
        self._pair = None if isinstance(data, DataLoader) else _tensors(data)
        self._data = data

    def __len__(self) -> int:
        return self._n

    @property
    def in_memory(self) -> bool:
        """Whether they are tensors."""
        return self._pair is not None

    def read(self, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Those of a slice, or of a list of numbers, as (x, y)."""
        if self._pair is not None:
            return self._pair[0][index], self._pair[1][index]
        numbers = range(self._n)[index] if isinstance(index, slice) else index.tolist()
        if isinstance(self._data, DataLoader):
            return _collate(self._data.dataset, numbers, self._data.collate_fn)
        return _collate(self._data, numbers)  # type: ignore[arg-type]


def check_alike(name: str, data: Data) -> None:
    """Refuse, where processes share the work, a DataLoader that may give each of them other samples.

    Raises:
        ValueError: it shuffles, or hands every process a share of its own.
    """
    if distributed.processes() > 1 and isinstance(data, DataLoader):
        sampler = getattr(data.batch_sampler, "sampler", data.sampler)
        if isinstance(sampler, UNLIKE):
            raise ValueError(
                f"{name}: is a DataLoader with a {type(sampler).__name__}, which may give every process other samples; "
                "pass its dataset, whose samples are then shared out"
            )


def _split(loader: DataLoader[Any], batch_size: int | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    position = 0
    for batch in loader:
        x, y = _checked(batch)
        step = batch_size or len(x)
        yield from ((position + i, x[i : i + step], y[i : i + step]) for i in range(0, len(x), step))
        position += len(x)


def batches(
    data: Data, batch_size: int | None = None, device: torch.device | str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over (x, y) batches on `device`, in the order of the data; a DataLoader's batches are split, not joined.

    Raises:
        ValueError: the data is empty or not made of (x, y) pairs.
    """
    return ((x, y) for _, x, y in _batches(data, batch_size, device, iter))


def shared_batches(
    data: Data, batch_size: int | None = None, device: torch.device | str | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The :func:`batches` dealt to this process, all in a single one, each after the number of its first sample.

    Of a DataLoader the others are read, but go no further.
    """
    return _batches(data, batch_size, device, distributed.round_robin)


def _batches(
    data: Data,
    batch_size: int | None,
    device: torch.device | str | None,
    chosen: Callable[[Iterable[Any]], Iterator[Any]],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    n = size(data)
    check_at_least_one(batch_size=batch_size)
    if isinstance(data, DataLoader):
        parts: Iterator[tuple[int, Tensor, Tensor]] = chosen(_split(data, batch_size))
    else:
        step, pair = batch_size or BATCH_SIZE, _tensors(data)
        starts = chosen(range(0, n, step))
        if pair is not None:
            parts = ((i, pair[0][i : i + step], pair[1][i : i + step]) for i in starts)
        else:
            parts = ((i, *_collate(data, range(i, min(i + step, n)))) for i in starts)  # type: ignore[arg-type]
    for position, x, y in parts:
        yield position, x.to(device), y.to(device)
