"""Writing files so that a crash leaves either the old file or the whole new one."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write` on a temporary file beside `path`, then rename it to `path`; folders are made as needed.

    Raises:
        OSError: it cannot be written; the message names `path` and says why. Nothing is left of the temporary file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary, raw = Path(name), _Raw(handle, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            write(file)
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except Exception as error:
        reason = raw.failure or error  # torch.save says something else of a disk that is full
        if isinstance(reason, OSError):
            raise _cannot_write(path, reason) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


class _Raw(io.FileIO):
    """A file that remembers why it could not be written."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def make_folder(folder: Path) -> None:
    """Make the folder, and those that it is in, where they are not there.

    Raises:
        OSError: it cannot be made; the message names `folder` and says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> OSError:
    return type(error)(f"{path}: cannot be written: {error.strerror or error}")


def check_room(folder: Path, size: int) -> None:
    """Refuse a folder in which a file of so many bytes cannot be written.

    Where the system can, the bytes are reserved for a moment: quotas and limits count too, not only the free space.

    Raises:
        OSError: they do not fit, or the folder cannot be written to; the message names it.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".room.") as file:
            file.write(b"\0")
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system cannot reserve
            return
        raise type(error)(f"{folder}: {size / 2**20:,.1f} MiB cannot be written there: {error.strerror}") from error
