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

BATCH_SIZE = 256  # samples per pass where the caller does not say
# Samplers that may give every process of torchrun other samples.
PROCESS_DEPENDENT_SAMPLERS = (DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def _tensors(data: Data) -> tuple[Tensor, Tensor] | None:
    """All of `data` as tensors, where it is made of tensors; None where samples must be read one by one."""
    if isinstance(data, (tuple, list)):
        pair = tuple(data)
    elif type(data) is TensorDataset:  # not a subclass, which may transform its samples
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
    """Number of samples.

    Raises:
        ValueError: there are none, or they cannot be counted.
    """
    source = data.dataset if isinstance(data, DataLoader) else data
    readable = isinstance(source, (tuple, list, Dataset)) or hasattr(source, "__getitem__")
    if not readable or isinstance(source, (Tensor, dict, str)):
        raise ValueError(f"data: expected a pair (x, y), a Dataset or a DataLoader, got {type(source).__name__}")
    if not hasattr(source, "__len__"):
        raise ValueError(f"data: {type(source).__name__} has no length, expected a Dataset with __len__")
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
    """All of `data` as one pair of tensors; not copied where it is a pair already."""
    size(data)
    pair = _tensors(data)
    if pair is not None:
        return pair
    parts = list(batches(data))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def check_visits_all(data: Data) -> None:
    """Refuse a DataLoader that may not visit each sample of its dataset exactly once.

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
    """Refuse a DataLoader in another order than its dataset, by which per-sample results are indexed.

    Raises:
        ValueError: it shuffles, leaves samples out or repeats some.
    """
    check_visits_all(data)
    if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler):
        raise ValueError(f"{name}: is a DataLoader that shuffles, expected the order of its dataset; pass the dataset")


class Samples:
    """The samples of `data` by index, read on demand; of a DataLoader, the samples of its dataset."""

    def __init__(self, data: Data):
        self._n = size(data)
        self._pair = None if isinstance(data, DataLoader) else _tensors(data)
        self._data = data

    def __len__(self) -> int:
        return self._n

    @property
    def in_memory(self) -> bool:
        """Whether the samples are tensors in memory, rather than read on demand."""
        return self._pair is not None

    def read(self, index: slice | Tensor) -> tuple[Tensor, Tensor]:
        """The samples of a slice, or of a tensor of indices, as (x, y)."""
        if self._pair is not None:
            return self._pair[0][index], self._pair[1][index]
        numbers = range(self._n)[index] if isinstance(index, slice) else index.tolist()
        if isinstance(self._data, DataLoader):
            return _collate(self._data.dataset, numbers, self._data.collate_fn)
        return _collate(self._data, numbers)  # type: ignore[arg-type]


def check_same_in_every_process(name: str, data: Data) -> None:
    """Refuse, where processes share the work, a DataLoader that may give every process other samples.

    Raises:
        ValueError: it shuffles, or already divides the samples among the processes.
    """
    if distributed.processes() > 1 and isinstance(data, DataLoader):
        sampler = getattr(data.batch_sampler, "sampler", data.sampler)
        if isinstance(sampler, PROCESS_DEPENDENT_SAMPLERS):
            raise ValueError(
                f"{name}: is a DataLoader with a {type(sampler).__name__}, which may give every process other samples; "
                "pass its dataset, whose samples are then divided among the processes"
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
    """The :func:`batches` that are this process's, as (index of the first sample, x, y); all of them in one process.

    Of a DataLoader every process reads all batches, and leaves out those of the others.
    """
    return _batches(data, batch_size, device, distributed.round_robin)


def _batches(
    data: Data,
    batch_size: int | None,
    device: torch.device | str | None,
    select: Callable[[Iterable[Any]], Iterator[Any]],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    n = size(data)
    check_at_least_one(batch_size=batch_size)
    if isinstance(data, DataLoader):
        parts: Iterator[tuple[int, Tensor, Tensor]] = select(_split(data, batch_size))
    else:
        step, pair = batch_size or BATCH_SIZE, _tensors(data)
        starts = select(range(0, n, step))
        if pair is not None:
            parts = ((i, pair[0][i : i + step], pair[1][i : i + step]) for i in starts)
        else:
            parts = ((i, *_collate(data, range(i, min(i + step, n)))) for i in starts)  # type: ignore[arg-type]
    for position, x, y in parts:
        yield position, x.to(device), y.to(device)
