"""Imports of packages that are installed by an extra of unlearnx."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(user: str, package: str, name: str = "experiments") -> Iterator[None]:
    """If an import inside this context fails, the error names the command that installs the package.

    Args:
        user: what needs the package, for the message.
        package: name of the package.
        name: of the extra.

    Raises:
        ImportError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{user} needs {package}: pip install 'unlearnx[{name}]'") from error
