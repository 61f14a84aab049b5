"""Work shared among the processes of ``torchrun``; each holds the same model and names the same data."""

from __future__ import annotations

from torch import Tensor
from torch import distributed as dist


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def share(n: int) -> range:
    """The numbers from 0 to n that are this process's: consecutive, possibly none; all of them in a single process."""
    if not _running():
        return range(n)
    rank, processes = dist.get_rank(), dist.get_world_size()
    return range(n * rank // processes, n * (rank + 1) // processes)


def sum_(t: Tensor) -> Tensor:
    """The sum of `t` over all processes, in place."""
    if _running():
        dist.all_reduce(t)
    return t


def of_first_(t: Tensor) -> Tensor:
    """What the first process has in `t`, in place: random numbers that all are to agree on."""
    if _running():
        dist.broadcast(t, 0)
    return t
