"""The folder that a run writes to, found fit before any work is done, and held while it lasts."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 1 << 20  # bytes that have to be free at the start
LOCK = ".lock"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep other processes from claiming it meanwhile. The system gives it back after a crash.

    A folder that this made, and in which nothing was written, is removed at the end.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be made, or written to, or its disk is full; the message names it.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        _remove_if_empty(folder, made)
        raise OSError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder} is in use by another run, expected a folder of its own") from error
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            _remove_if_empty(folder, made)
    finally:
        os.close(lock)


def _check_room(folder: Path) -> None:
    probe = folder / f".room-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _remove_if_empty(folder: Path, made: bool) -> None:
    if made and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
