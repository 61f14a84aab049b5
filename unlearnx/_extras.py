"""Packages that come with an extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(user: str, package: str) -> Iterator[None]:
    """Imports made inside tell, where they fail, what brings the package.

    Args:
        user: what needs the package, as the message names it.
        package: name of the package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{user} needs {package}: pip install 'unlearnx[experiments]'") from error
