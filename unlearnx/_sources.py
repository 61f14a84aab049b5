"""Where samples come from, and the one place that reads them by index, a batch at a time.

Nothing is held in memory but what is there already: a subset is its indices, sets joined are read each where it is, and
what is made of samples, such as the outputs of a frozen part of a model, is made when a batch is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from unlearnx._batches import Index, Nest, constant, count, joined, nbytes, one, take
from unlearnx._memory import give_back
from unlearnx._pairs import Pair, checked, size

Collate = Callable[[list[Any]], Any]
# What is made of a batch: from x, y and the indices of the samples.
Change = Callable[[Nest, Nest, Tensor], Pair]

GIVEN_BACK = 256 << 20  # bytes of samples read after which the system gets freed memory back

# The settings of a DataLoader that say how samples are read, rather than which.
_READING = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
)


class Batched(Dataset[Any]):
    """The samples of a batch of nests as a dataset, as TensorDataset is for tensors."""

    def __init__(self, x: Nest, y: Nest):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return count(self.y)

    def __getitem__(self, i: int) -> Pair:
        return one(self.x, i), one(self.y, i)


class Loaded(Dataset[Any]):
    """The dataset of a DataLoader, read as the loader reads it: by its collate function, and its workers."""

    def __init__(self, loader: DataLoader[Any]):
        self.dataset, self.collate = loader.dataset, loader.collate_fn
        self.reading = {name: getattr(loader, name) for name in _READING}

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i]


class Changed(Dataset[Any]):
    """The samples of a dataset as a function changes them, batch by batch, whenever they are read.

    Args:
        dataset: the samples.
        change: returns x and y of a batch, from those of the dataset and the samples' indices.
    """

    def __init__(self, dataset: Dataset[Any], change: Change):
        self.dataset, self.change = dataset, change

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Pair:
        x, y = Samples(self).read(torch.tensor([i]))
        return one(x, 0), one(y, 0)


def relabelled(dataset: Dataset[Any], labels: Nest) -> Dataset[Any]:
    """The samples of a dataset with other labels, a row of `labels` for each."""
    return Changed(dataset, lambda x, y, index: (x, take(labels, index)))


class Samples:
    """Samples by index, read on demand; of a DataLoader, those of its dataset."""

    def __init__(self, data: Any):
        size(data)  # refuses what has no samples
        self._source = _source(data)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def in_memory(self) -> bool:
        """Whether the samples are tensors in memory, rather than read on demand."""
        return self._source.in_memory

    def read(self, index: Index) -> Pair:
        """The samples of a slice, or of a tensor of indices, as (x, y)."""
        return next(iter(self.batches([index])))

    def batches(self, indices: Sequence[Index], seed: int = 0) -> Iterator[Pair]:
        """The samples of each of several slices or tensors of indices, read ahead where the data has workers.

        Args:
            seed: what the workers' random numbers start from.
        """
        return ((constant(x), constant(y)) for x, y in self._source.batches(indices, seed))


class _Source(Protocol):
    @property
    def in_memory(self) -> bool: ...

    def __len__(self) -> int: ...

    def batches(self, indices: Sequence[Index], seed: int) -> Iterator[Pair]: ...


def _source(data: Any) -> _Source:
    if isinstance(data, (tuple, list, Mapping)):
        return _InMemory(*checked(data))
    if isinstance(data, DataLoader):
        return _source(as_loaded(data))
    if isinstance(data, Batched):
        return _InMemory(data.x, data.y)
    if type(data) is TensorDataset:  # not a subclass, which may transform its samples; the same goes for the others
        return _InMemory(*checked(data.tensors))
    if type(data) is Subset:
        base, index = _source(data.dataset), torch.as_tensor(data.indices, dtype=torch.int64)
        return _Picked(base.base, base.index[index]) if isinstance(base, _Picked) else _Picked(base, index)
    if type(data) is ConcatDataset:
        return _joined_sources([_source(part) for part in data.datasets])
    if isinstance(data, Changed):
        return _Changed(_source(data.dataset), data.change)
    if isinstance(data, Loaded):
        return _Read(data.dataset, data.collate, data.reading)
    return _Read(data, default_collate, {})


def as_loaded(loader: DataLoader[Any]) -> Dataset[Any]:
    """The samples of a DataLoader by index; the dataset itself where the loader reads as anybody would."""
    plain = loader.collate_fn is default_collate and loader.num_workers == 0
    return loader.dataset if plain else Loaded(loader)


class _InMemory:
    in_memory = True

    def __init__(self, x: Nest, y: Nest):
        self.x, self.y, self.n = x, y, count(y)

    def __len__(self) -> int:
        return self.n

    def batches(self, indices: Sequence[Index], seed: int) -> Iterator[Pair]:
        for index in indices:
            yield (self.x, self.y) if _is_all(index, self.n) else (take(self.x, index), take(self.y, index))


class _Picked:
    def __init__(self, base: _Source, index: Tensor):
        self.base, self.index, self.in_memory = base, index, base.in_memory

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, indices: Sequence[Index], seed: int) -> Iterator[Pair]:
        return self.base.batches([self.index[i.cpu() if isinstance(i, Tensor) else i] for i in indices], seed)


class _Read:
    """Samples that a dataset gives one by one, or several at once by ``__getitems__``."""

    in_memory = False

    def __init__(self, dataset: Any, collate: Collate, reading: dict[str, Any]):
        self.dataset, self.collate, self.reading = dataset, collate, reading

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, indices: Sequence[Index], seed: int) -> Iterator[Pair]:
        read = 0
        for batch in self._batches(indices, seed):
            read += nbytes(batch)
            if read > GIVEN_BACK:
                give_back()
                read = 0
            yield batch

    def _batches(self, indices: Sequence[Index], seed: int) -> Iterator[Pair]:
        n = len(self)
        numbers = [_numbers(index, n) for index in indices]
        collate = partial(_collated, self.collate)
        workers = self.reading.get("num_workers", 0)
        if workers and len(numbers) > 2 * workers:  # starting them takes longer than reading a few batches
            generator = torch.Generator().manual_seed(seed)
            yield from DataLoader(
                self.dataset, batch_sampler=numbers, collate_fn=collate, generator=generator, **self.reading
            )
            return
        together = getattr(self.dataset, "__getitems__", None)
        for wanted in numbers:
            yield collate(together(wanted) if callable(together) else [self.dataset[i] for i in wanted])


class _Joined:
    """Sources one after the other. A batch may hold samples of several."""

    def __init__(self, parts: Sequence[_Source]):
        self.parts, self.in_memory = parts, all(part.in_memory for part in parts)
        self.starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batches(self, indices: Sequence[Index], seed: int) -> Iterator[Pair]:
        numbers = [_tensor(index, len(self)) for index in indices]
        owners = [torch.bucketize(index, self.starts, right=True) - 1 for index in numbers]
        iterators = []
        for k, part in enumerate(self.parts):
            own = [index[owner == k] - self.starts[k] for index, owner in zip(numbers, owners, strict=True)]
            iterators.append(part.batches([index for index in own if len(index)], seed))
        for owner in owners:
            parts = [next(iterators[k]) for k in owner.unique().tolist()]
            back = owner.argsort(stable=True).argsort()
            yield _in_order([x for x, _ in parts], back), _in_order([y for _, y in parts], back)


class _Changed:
    in_memory = False

    def __init__(self, base: _Source, change: Change):
        self.base, self.change = base, change

    def __len__(self) -> int:
        return len(self.base)

    def batches(self, indices: Sequence[Index], seed: int) -> Iterator[Pair]:
        for index, (x, y) in zip(indices, self.base.batches(indices, seed), strict=True):
            yield self.change(x, y, _tensor(index, len(self)))


def _joined_sources(parts: Sequence[_Source]) -> _Source:
    """The sources one after the other; read together where one collate function makes their batches, as it may pad."""
    bases = [part.base if isinstance(part, _Picked) else part for part in parts]
    first = bases[0]
    if not all(isinstance(base, _Read) and base.collate is bases[0].collate for base in bases):  # type: ignore[attr-defined]
        return _Joined(parts)
    assert isinstance(first, _Read)
    index, start = [], 0
    for base, part in zip(bases, parts, strict=True):
        index.append(start + (part.index if isinstance(part, _Picked) else torch.arange(len(base))))
        start += len(base)
    datasets = [base.dataset for base in bases]  # type: ignore[attr-defined]
    return _Picked(_Read(ConcatDataset(datasets), first.collate, first.reading), torch.cat(index))


def _in_order(parts: list[Nest], back: Tensor) -> Nest:
    return parts[0] if len(parts) == 1 else take(joined(parts), back)


def _collated(collate: Collate, samples: list[Any]) -> Pair:
    try:
        batch = collate(samples)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"data: expected samples that stack into a batch, got ones that do not: {error}") from error
    pair = checked(batch)
    if count(pair[1]) != len(samples):
        raise ValueError(
            f"data: collate_fn made a batch of {count(pair[1])} of {len(samples)} samples, expected as many"
        )
    return pair


def _is_all(index: Index, n: int) -> bool:
    return isinstance(index, slice) and index.indices(n) == (0, n, 1)


def _numbers(index: Index, n: int) -> list[int]:
    return list(range(n)[index]) if isinstance(index, slice) else index.tolist()


def _tensor(index: Index, n: int) -> Tensor:
    return torch.arange(n)[index] if isinstance(index, slice) else index.cpu()
