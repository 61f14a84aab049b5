"""What the words ``module:name`` of a command line stand for: code of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

_OURS = str(Path(__file__).parent)


def own(argument: str, value: str) -> Any:
    """What ``module:name`` names; modules are looked for in the current directory first.

    Args:
        argument: name of the option, for errors, such as ``--model``.
        value: such as ``model:build``; the part after the colon may have dots.

    Raises:
        ValueError: it is not of this form, there is no such module or name, or importing the module fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return attribute(argument, value)


def attribute(argument: str, value: str) -> Any:
    """The same among the modules that are found anyway.

    Raises:
        ValueError: as for :func:`own`.
    """
    module_name, _, path = value.partition(":")
    if not module_name or not path:
        raise ValueError(f"{argument} is {value!r}, expected module:name, such as model:build")
    found: Any = _import(argument, value, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{argument} is {value!r}, but {module_name} has no {path!r}")
        found = getattr(found, part)
    return found


def _import(argument: str, value: str, name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{name}.".startswith(f"{absent}."):  # the module itself, not one that it imports
            raise ValueError(
                f"{argument} is {value!r}, but there is no module {absent!r} in {os.getcwd()} or among those installed"
            ) from error
        raise failure(argument, value, error) from error


def failure(argument: str, value: str, error: BaseException) -> ValueError:
    """An error that says what went wrong in the user's code, and where."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    where = f" at {places[-1].filename}, line {places[-1].lineno}" if places else ""
    return ValueError(f"{argument} {value}: failed{where}: {type(error).__name__}: {error}")
