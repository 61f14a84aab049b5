"""Work shared among the processes of ``torchrun``; each holds the same model and names the same data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from unlearnx.ops._dtypes import compute_dtype

T = TypeVar("T")


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if _running() else 1


def is_first() -> bool:
    """Whether this process is the one that does what is to be done once; true in a single process."""
    return not _running() or dist.get_rank() == 0


def local_range(n: int) -> range:
    """The numbers from 0 to n that are this process's: consecutive, possibly none; all of them in a single process."""
    if not _running():
        return range(n)
    rank = dist.get_rank()
    return range(n * rank // processes(), n * (rank + 1) // processes())


def round_robin(items: Iterable[T]) -> Iterator[T]:
    """Those of the items, dealt out in turn, that are this process's: possibly none; all in a single process."""
    return islice(items, dist.get_rank() if _running() else 0, None, processes())


def all_reduce_(tensors: Iterable[Tensor]) -> None:
    """Sums over all processes, in place; tensors travel together, in float32 or wider."""
    if processes() == 1:
        return
    together: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        together.setdefault(compute_dtype(t), []).append(t)
    for dtype, group in together.items():
        if len(group) == 1 and group[0].dtype == dtype and group[0].is_contiguous():
            dist.all_reduce(group[0])
            continue
        # Values lie in the order of the dimensions, whatever the order of memory is in each process.
        row = torch.cat([t.reshape(-1).to(dtype) for t in group])
        dist.all_reduce(row)
        for t, part in zip(group, row.split([t.numel() for t in group]), strict=True):
            t.copy_(part.view(t.shape))


def broadcast_(t: Tensor) -> Tensor:
    """What the first process has in `t`, in place.

    For random numbers that all are to agree on, and for numbers that decide about further calls: on unlike
    processors they differ by rounding, and processes that decide differently would wait for each other forever.
    """
    if _running():
        dist.broadcast(t, 0)
    return t


@contextmanager
def failing_together(device: torch.device) -> Iterator[None]:
    """Work of its own for each process; where it fails in one it fails in all, for the others would wait forever.

    Raises:
        RuntimeError: it failed in another process.
    """
    if not _running():
        yield
        return
    failures = torch.zeros((), device=device)
    try:
        yield
    except Exception:
        dist.all_reduce(failures.add_(1))
        raise
    dist.all_reduce(failures)
    if failures:
        raise RuntimeError("another process failed, whose error tells why")
