"""Data as the engines take it: batched samples in memory, a Dataset or a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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
)

from unlearnx import _distributed as distributed
from unlearnx._batches import Nest, constant, count, joined, moved, nbytes, take
from unlearnx._checks import check_at_least_one
from unlearnx._pairs import Pair, checked, size
from unlearnx._progress import passing
from unlearnx._sources import Batched, Loaded, Samples, as_loaded

# A pair (x, y) of nests of batched tensors, a mapping of them with y as its entry "labels", or a source of samples.
Data = tuple[Nest, Nest] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]

BATCH_SIZE = 256  # samples per pass where the caller does not say
KEPT_BYTES = 512 << 20  # most memory that samples, or what is made of them, are kept in
# Samplers that may give every process of torchrun other samples.
PROCESS_DEPENDENT_SAMPLERS = (DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def as_dataset(data: Data) -> Dataset[Any]:
    """The samples of `data` by index; of a DataLoader, those of its dataset, read as the loader reads them."""
    if isinstance(data, (tuple, list, Mapping)):
        return dataset_of(*checked(data))
    return as_loaded(data) if isinstance(data, DataLoader) else data


def dataset_of(x: Nest, y: Nest) -> Dataset[Any]:
    """Samples in memory as a dataset."""
    return TensorDataset(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else Batched(x, y)


def picked(data: Data, index: Tensor, batch_size: int | None = None) -> Dataset[Any]:
    """The samples at these indices, in memory where they take at most KEPT_BYTES."""
    chosen = Subset(as_dataset(data), index.tolist())
    bytes_each = nbytes(Samples(chosen).read(slice(0, 1)))
    return dataset_of(*materialize(chosen, batch_size)) if bytes_each * len(index) <= KEPT_BYTES else chosen


def drawn(data: Data, most: int, generator: torch.Generator, batch_size: int | None = None) -> Dataset[Any]:
    """At most so many samples, drawn at random; see :func:`picked`."""
    index = torch.randperm(size(data), generator=generator)[:most]
    return picked(data, index, batch_size) if len(index) < size(data) else as_dataset(data)


def left_of(n: int, gone: Tensor) -> Tensor:
    """The indices of `n` samples that are not among those `gone`, ascending, int64."""
    stays = torch.ones(n, dtype=torch.bool)
    stays[gone] = False
    return stays.nonzero().flatten()


def materialize(data: Data, batch_size: int | None = None) -> Pair:
    """All of `data` as one batch (x, y), read `batch_size` samples at a time; not copied where it is one already.

    Samples of different lengths are made into one batch by the data's own collate function, which may pad them.
    """
    size(data)
    if isinstance(data, DataLoader):
        check_visits_all(data)
    samples = Samples(data)
    if samples.in_memory or _pads(data):
        return samples.read(slice(None))
    parts = list(batches(data, batch_size))
    return joined([x for x, _ in parts]), joined([y for _, y in parts])


def _pads(data: Any) -> bool:
    while type(data) is Subset:
        data = data.dataset
    return isinstance(data if not isinstance(data, DataLoader) else as_loaded(data), Loaded)


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


def _split(loader: DataLoader[Any], batch_size: int | None) -> Iterator[tuple[int, Nest, Nest]]:
    position = 0
    for batch in loader:
        x, y = map(constant, checked(batch))
        n = count(y)
        for i in range(0, n, batch_size or max(n, 1)):
            part = slice(i, i + (batch_size or n))
            yield position + i, take(x, part), take(y, part)
        position += n


def batches(
    data: Data, batch_size: int | None = None, device: torch.device | str | None = None, *, title: str | None = None
) -> Iterator[Pair]:
    """Iterate over (x, y) batches on `device`, in the order of the data; a DataLoader's batches are split, not joined.

    Args:
        title: what the pass is for, in words, where progress is shown.

    Raises:
        ValueError: the data is empty or not made of (x, y) pairs.
    """
    return ((x, y) for _, x, y in _batches(data, batch_size, device, iter, title))


def shared_batches(
    data: Data, batch_size: int | None = None, device: torch.device | str | None = None, *, title: str | None = None
) -> Iterator[tuple[int, Nest, Nest]]:
    """The :func:`batches` that are this process's, as (index of the first sample, x, y); all of them in one process.

    Of a DataLoader every process reads all batches, and leaves out those of the others.
    """
    return _batches(data, batch_size, device, distributed.round_robin, title)


def _batches(
    data: Data,
    batch_size: int | None,
    device: torch.device | str | None,
    select: Callable[[Iterable[Any]], Iterator[Any]],
    title: str | None,
) -> Iterator[tuple[int, Nest, Nest]]:
    n = size(data)
    check_at_least_one(batch_size=batch_size)
    if isinstance(data, DataLoader):
        parts: Iterator[tuple[int, Nest, Nest]] = select(_split(data, batch_size))
    else:
        step = batch_size or BATCH_SIZE
        starts = list(select(range(0, n, step)))
        read = Samples(data).batches([slice(i, min(i + step, n)) for i in starts])
        parts = ((i, x, y) for i, (x, y) in zip(starts, read, strict=True))
    with passing(title, n) as advance:
        for position, x, y in parts:
            yield position, moved(x, device), moved(y, device)
            advance(count(y))
