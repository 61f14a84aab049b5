"""Work divided among the processes of ``torchrun``, which all have the same model and name the same data."""

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
    """Number of processes that share the work; 1 without ``torch.distributed``."""
    return dist.get_world_size() if _running() else 1


def is_first() -> bool:
    """Whether this process does what is to be done once, such as writing files; true in a single process."""
    return not _running() or dist.get_rank() == 0


def local_range(n: int) -> range:
    """This process's part of ``range(n)``: consecutive, possibly empty; all of it in a single process."""
    if not _running():
        return range(n)
    rank = dist.get_rank()
    return range(n * rank // processes(), n * (rank + 1) // processes())


def round_robin(items: Iterable[T]) -> Iterator[T]:
    """This process's items, where item i goes to process ``i % processes()``; all of them in a single process."""
    return islice(items, dist.get_rank() if _running() else 0, None, processes())


def all_reduce_(tensors: Iterable[Tensor]) -> None:
    """Sum over all processes, in place; tensors of a dtype are sent as one, in float32 or float64."""
    if processes() == 1:
        return
    together: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        together.setdefault(compute_dtype(t), []).append(t)
    for dtype, group in together.items():
        if len(group) == 1 and group[0].dtype == dtype and group[0].is_contiguous():
            dist.all_reduce(group[0])
            continue
        # reshape(-1) gives the same order of values in every process, whatever the strides of its tensor.
        row = torch.cat([t.reshape(-1).to(dtype) for t in group])
        dist.all_reduce(row)
        for t, part in zip(group, row.split([t.numel() for t in group]), strict=True):
            t.copy_(part.view(t.shape))


def broadcast_(t: Tensor) -> Tensor:
    """The first process's values of `t`, in place, in every process.

    For random numbers, and for numbers that decide about further communication: they may differ by rounding between
    processors, and processes that decide differently would wait for each other forever.
    """
    if _running():
        dist.broadcast(t, 0)
    return t


@contextmanager
def failing_together(device: torch.device) -> Iterator[None]:
    """Work that each process does alone; if it raises in one process, it raises in all, which would otherwise wait.

    Raises:
        RuntimeError: the work failed in another process.
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
        raise RuntimeError("the work failed in another process; see the error of that process")
