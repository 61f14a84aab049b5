"""The folder that a command writes to: found to be good before any work is done, and held by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unlearnx._files import check_room

LOCK = ".unlearnx-run"  # exists while a run writes to the folder; one that was killed leaves it behind
MIN_ROOM = 2**20  # bytes that results need besides weights: JSON and a page with plots
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems without locks


@contextmanager
def claimed(folder: Path, results: Sequence[str] = (), room: int = MIN_ROOM) -> Iterator[None]:
    """Hold `folder` for one run, made as needed. If nothing is written, the folders made for it are removed again.

    What a run that was killed has left there does not count as results: another run may take such a folder.

    Args:
        folder: to write to.
        results: names of files that must not be there yet.
        room: bytes that the run will write.

    Raises:
        ValueError: it is a file or holds results, or another run writes to it; the message names it.
        OSError: it cannot be made or written to, or the disk is too full.
    """
    lock = folder / LOCK
    _check_path(folder)
    if not lock.exists():
        for name in results:
            if (folder / name).exists():
                raise ValueError(f"out: {folder} holds {name} already, expected a folder without results")
    made = _make(folder)
    try:
        handle = _locked(folder, lock)
        try:
            check_room(folder, room)
            yield
        finally:
            with contextlib.suppress(OSError):  # what went wrong is known by now
                lock.unlink()
            os.close(handle)
    finally:
        for path in reversed(made):
            with contextlib.suppress(OSError):  # it holds files
                path.rmdir()


def _check_path(folder: Path) -> None:
    for path in (folder, *folder.parents):
        try:
            found = path.is_dir() or path.exists()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise type(error)(f"out: {folder} cannot be used: {error.strerror}") from error
        if found:
            if not path.is_dir():
                raise ValueError(f"out: {path} is a file, expected a folder")
            return


def _make(folder: Path) -> list[Path]:
    """Make the folder; returns those that were made, from the outermost on."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for path in reversed(missing):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise type(error)(f"out: {folder} cannot be made: {error.strerror}") from error
    return missing


def _locked(folder: Path, lock: Path) -> int:
    """Handle of the lock file, which the system gives back when the process ends, however that happens."""
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise type(error)(f"out: {folder} cannot be written to: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ValueError(f"out: another run is writing to {folder}, expected a folder of this run's own") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise type(error)(f"out: {folder} cannot be locked: {error.strerror}") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)  # the run that held it ended in the meantime, and took the file away
