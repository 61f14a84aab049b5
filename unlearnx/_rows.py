"""Tensors with a row for each sample, such as features, that are kept in memory where they fit and on disk beyond."""

from __future__ import annotations

import math
import mmap
import tempfile
from typing import BinaryIO

import torch
from torch import Tensor

from unlearnx._data import KEPT_BYTES


class Rows:
    """Rows of one shape, added in order.

    They are kept in memory, on the device they come from, where all of them take at most ``KEPT_BYTES``; otherwise in a
    temporary file that has no name and goes with the tensor that is read from it. The folder is that of ``tempfile``,
    which ``TMPDIR`` sets.

    Args:
        expected: how many rows will be added; more or fewer may come.

    Example:
        >>> rows = Rows(3)
        >>> rows.add(torch.tensor([[1.0, 2.0]]))
        >>> rows.add(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
        >>> rows.joined().sum(0)
        tensor([ 9., 12.])
    """

    def __init__(self, expected: int):
        self._expected, self._n = expected, 0
        self._memory: Tensor | None = None
        self._file: BinaryIO | None = None
        self._first: Tensor | None = None

    def fits(self, rows: Tensor) -> bool:
        """Whether rows are of the shape of those that were added."""
        return self._first is None or (rows.shape[1:] == self._first.shape[1:] and rows.dtype == self._first.dtype)

    def add(self, rows: Tensor) -> None:
        """Add rows (n, ...).

        Raises:
            OSError: there is no room for the file.
        """
        if self._first is None:
            self._first = rows[:1].clone()
            if self._first.nbytes * self._expected <= KEPT_BYTES:
                self._memory = _room(self._expected, rows)
            else:
                self._file = tempfile.TemporaryFile(prefix="unlearnx-")  # noqa: SIM115 - it lives as long as its rows
        stop = self._n + len(rows)
        if self._memory is not None:
            if stop > len(self._memory):
                self._memory = torch.cat([self._memory[: self._n], _room(stop, rows)])
            self._memory[self._n : stop] = rows
        elif self._file is not None:
            self._file.write(rows.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        self._n = stop

    def joined(self) -> Tensor:
        """All rows, (N, ...)."""
        if self._memory is not None:
            return self._memory[: self._n]
        if self._file is None or self._first is None:
            raise ValueError("rows: none were added, expected at least one")
        self._file.flush()
        shape = (self._n, *self._first.shape[1:])
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        return torch.frombuffer(mapped, dtype=self._first.dtype, count=math.prod(shape)).view(shape)


def _room(n: int, rows: Tensor) -> Tensor:
    """Space for n rows in the memory order of these."""
    images = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if images else torch.contiguous_format
    return torch.empty((n, *rows.shape[1:]), dtype=rows.dtype, device=rows.device, memory_format=order)
