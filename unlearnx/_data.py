"""Data as the engines take it: batched samples in memory, a Dataset or a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from unlearnx._batches import Index, Nest, count, joined, moved, one, take, taken_apart
from unlearnx._checks import check_at_least_one

# A pair (x, y) of nests of batched tensors, a mapping of them with y as its entry "labels", or a source of samples.
Data = tuple[Nest, Nest] | Mapping[str, Any] | Dataset[Any] | DataLoader[Any]
Pair = tuple[Nest, Nest]
Collate = Callable[[list[Any]], Any]

LABELS = "labels"  # the entry of a mapping that goes to the loss, not to the model
BATCH_SIZE = 256  # samples per pass where the caller does not say
# Samplers that may give every process of torchrun other samples.
PROCESS_DEPENDENT_SAMPLERS = (DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Batched(Dataset[Any]):
    """The samples of a batch of nests as a dataset, as TensorDataset is for tensors."""

    def __init__(self, x: Nest, y: Nest):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return count(self.y)

    def __getitem__(self, i: int) -> Pair:
        return one(self.x, i), one(self.y, i)


class Collated(Dataset[Any]):
    """A dataset with the function by which its DataLoader makes batches of its samples."""

    def __init__(self, dataset: Dataset[Any], collate: Collate):
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i]


def as_dataset(data: Data) -> Dataset[Any]:
    """The samples of `data` by index; of a DataLoader, those of its dataset."""
    if isinstance(data, (tuple, list, Mapping)):
        return dataset_of(*materialize(data))
    if not isinstance(data, DataLoader):
        return data
    plain = data.collate_fn is default_collate
    return data.dataset if plain else Collated(data.dataset, data.collate_fn)


def dataset_of(x: Nest, y: Nest) -> Dataset[Any]:
    """Samples in memory as a dataset."""
    return TensorDataset(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else Batched(x, y)


def picked(data: Data, index: Tensor) -> Dataset[Any]:
    """The samples at these indices, in memory."""
    return dataset_of(*(take(nest, index) for nest in materialize(data)))


def _in_memory(data: Data) -> Pair | None:
    """All of `data`, where its samples are in memory as a batch; None where they must be read one by one."""
    if isinstance(data, (tuple, list, Mapping)):
        return _checked(data)
    if isinstance(data, Batched):
        return data.x, data.y
    if type(data) is TensorDataset:  # not a subclass, which may transform its samples
        return _checked(data.tensors)
    if type(data) is Subset:
        base = _in_memory(data.dataset)
        if base is None:
            return None
        index = torch.as_tensor(data.indices)
        return take(base[0], index), take(base[1], index)
    return None


def _checked(batch: Any) -> Pair:
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
    for path, leaf in _leaves(name, nest):
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


def _leaves(path: str, nest: Nest) -> Iterator[tuple[str, Any]]:
    """The leaves of a nest with what a reader would write to reach them."""
    if isinstance(nest, dict):
        for name, value in nest.items():
            yield from _leaves(f"{path}[{name!r}]", value)
    elif isinstance(nest, (tuple, list)):
        for i, value in enumerate(nest):
            yield from _leaves(f"{path}[{i}]", value)
    else:
        yield path, nest


def size(data: Data) -> int:
    """Number of samples.

    Raises:
        ValueError: there are none, or they cannot be counted.
    """
    source = data.dataset if isinstance(data, DataLoader) else data
    batch = isinstance(source, (tuple, list, Mapping))
    readable = batch or isinstance(source, Dataset) or hasattr(source, "__getitem__")
    if not readable or isinstance(source, (Tensor, str)):
        raise ValueError(f"data: expected a pair (x, y), a Dataset or a DataLoader, got {type(source).__name__}")
    if not hasattr(source, "__len__"):
        raise ValueError(f"data: {type(source).__name__} has no length, expected a Dataset with __len__")
    n = count(_checked(source)[1]) if batch else len(source)  # type: ignore[arg-type]
    if n == 0:
        raise ValueError("data: is empty, expected at least one sample")
    return n


def _collate_of(data: Data) -> Collate:
    """How samples of the data are made into a batch."""
    while type(data) is Subset:
        data = data.dataset
    if isinstance(data, DataLoader):
        return data.collate_fn
    return data.collate if isinstance(data, Collated) else default_collate


def _collate(dataset: Dataset[Any], indices: Sequence[int], collate: Collate) -> Pair:
    samples = [dataset[i] for i in indices]
    try:
        batch = collate(samples)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"data: expected samples that stack into a batch, got ones that do not: {error}") from error
    pair = _checked(batch)
    if count(pair[1]) != len(samples):
        raise ValueError(
            f"data: collate_fn made a batch of {count(pair[1])} of {len(samples)} samples, expected as many"
        )
    return pair


def materialize(data: Data) -> Pair:
    """All of `data` as one batch (x, y); not copied where it is one already.

    Samples of different lengths are made into one batch by the data's own collate function, which may pad them.
    """
    n = size(data)
    pair = None if isinstance(data, DataLoader) else _in_memory(data)
    if pair is not None:
        return pair
    collate = _collate_of(data)
    if collate is not default_collate:
        check_visits_all(data)
        return _collate(data.dataset if isinstance(data, DataLoader) else data, range(n), collate)  # type: ignore[arg-type]
    parts = list(batches(data))
    return joined([x for x, _ in parts]), joined([y for _, y in parts])


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
        self._pair = None if isinstance(data, DataLoader) else _in_memory(data)
        self._data = data

    def __len__(self) -> int:
        return self._n

    @property
    def in_memory(self) -> bool:
        """Whether the samples are tensors in memory, rather than read on demand."""
        return self._pair is not None

    def read(self, index: Index) -> Pair:
        """The samples of a slice, or of a tensor of indices, as (x, y)."""
        if self._pair is not None:
            return take(self._pair[0], index), take(self._pair[1], index)
        numbers = range(self._n)[index] if isinstance(index, slice) else index.tolist()
        source = self._data.dataset if isinstance(self._data, DataLoader) else self._data
        return _collate(source, numbers, _collate_of(self._data))  # type: ignore[arg-type]


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
        x, y = _checked(batch)
        n = count(y)
        yield from _parts(x, y, range(0, n, batch_size or max(n, 1)), batch_size or n, position)
        position += n


def _parts(x: Nest, y: Nest, starts: Iterable[int], step: int, position: int = 0) -> Iterator[tuple[int, Nest, Nest]]:
    """Parts of a batch, with the indices of their first samples."""
    for i in starts:
        s = slice(i, i + step)
        yield position + i, take(x, s), take(y, s)


def batches(data: Data, batch_size: int | None = None, device: torch.device | str | None = None) -> Iterator[Pair]:
    """Iterate over (x, y) batches on `device`, in the order of the data; a DataLoader's batches are split, not joined.

    Raises:
        ValueError: the data is empty or not made of (x, y) pairs.
    """
    return ((x, y) for _, x, y in _batches(data, batch_size, device, iter))


def shared_batches(
    data: Data, batch_size: int | None = None, device: torch.device | str | None = None
) -> Iterator[tuple[int, Nest, Nest]]:
    """The :func:`batches` that are this process's, as (index of the first sample, x, y); all of them in one process.

    Of a DataLoader every process reads all batches, and leaves out those of the others.
    """
    return _batches(data, batch_size, device, distributed.round_robin)


def _batches(
    data: Data,
    batch_size: int | None,
    device: torch.device | str | None,
    select: Callable[[Iterable[Any]], Iterator[Any]],
) -> Iterator[tuple[int, Nest, Nest]]:
    n = size(data)
    check_at_least_one(batch_size=batch_size)
    if isinstance(data, DataLoader):
        parts: Iterator[tuple[int, Nest, Nest]] = select(_split(data, batch_size))
    else:
        step, pair = batch_size or BATCH_SIZE, _in_memory(data)
        starts = select(range(0, n, step))
        if pair is not None:
            parts = _parts(*pair, starts, step)
        else:
            collate = _collate_of(data)
            parts = ((i, *_collate(data, range(i, min(i + step, n)), collate)) for i in starts)  # type: ignore[arg-type]
    for position, x, y in parts:
        yield position, moved(x, device), moved(y, device)
