"""Values from the words of a command line: a user's functions, indices in files, options of methods."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnx.experiments.hugging_face import folder_factory
from unlearnx.methods import METHODS, Method

PLAIN_TYPES = (bool, int, float, str)  # types that a word is read as, tried in this order
HUGGING_FACE = "hf"  # hf:FOLDER is a model of HuggingFace's form
BOOLEANS = {"true": True, "false": False}
# Fields of methods that have command line options of their own.
OWN_OPTIONS = {
    "params": "--params",
    "batch_size": "--batch-size",
    "seed": "--seed",
    "progress": "--progress",
    "factors": "--factors",
}


def factory(argument: str, value: str) -> Callable[[], Any]:
    """The function that ``module:function`` names; modules are looked for in the current directory first.

    If the function fails when it is called, a ValueError says where.

    Args:
        argument: name of the option, for errors, such as ``--model``.
        value: such as ``model:build``; the part after the colon may have dots.

    Raises:
        ValueError: it is not of this form, there is no such module or function, or importing the module fails.
    """
    module_name, _, path = value.partition(":")
    if module_name == HUGGING_FACE:
        raise ValueError(
            f"{argument} is {value!r}, expected module:function; {HUGGING_FACE}:FOLDER is for --model alone"
        )
    if not module_name or not path:
        raise ValueError(f"{argument} is {value!r}, expected module:function, such as model:build")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found: Any = _import(argument, value, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{argument} is {value!r}, but {module_name} has no {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{argument} is {value!r}, which is {type(found).__name__}, expected a function or class")

    def call() -> Any:
        try:
            return found()
        except (Exception, SystemExit) as error:
            raise _failure(argument, value, error) from error

    return call


def model(value: str, weights: Path | None) -> tuple[Callable[[], Any], Path]:
    """What builds the model that ``--model`` names, and where its weights are.

    Args:
        value: ``module:function``, or ``hf:FOLDER``, whose weights are those in the folder where no others are given.
        weights: file of the weights, if given.

    Raises:
        ValueError: there is no such function or model, or the weights are missing.
        OSError, ImportError: as for :func:`unlearnx.experiments.hugging_face.folder_factory`.
    """
    kind, _, folder = value.partition(":")
    if kind == HUGGING_FACE and folder:
        return folder_factory(Path(folder)), weights or Path(folder)
    if weights is None:
        raise ValueError("--weights is missing, expected the file of the model's weights")
    return factory("--model", value), weights


def data(argument: str, value: str) -> Any:
    """What the function that ``module:function`` names returns.

    Raises:
        ValueError: as for :func:`factory`, or it returns nothing.
    """
    found = factory(argument, value)()
    if found is None:
        raise ValueError(f"{argument} {value}: returned None, expected a Dataset, a DataLoader, (x, y) or a mapping")
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
        raise _failure(argument, value, error) from error


def _failure(argument: str, value: str, error: BaseException) -> ValueError:
    """An error that says what went wrong in the user's code, and where."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" at {places[-1].filename}, line {places[-1].lineno}" if places else ""
    return ValueError(f"{argument} {value}: failed{where}: {type(error).__name__}: {error}")


def read_indices(file: Path) -> Tensor:
    """The indices in `file`, int64 (N,): a .npy file of integers, or a text with one on each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or nothing.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    return _read_npy(file) if file.suffix == ".npy" else _read_lines(file)


def _read_npy(file: Path) -> Tensor:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: cannot be read, expected a .npy file with an array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 1:
        found = f"{array.dtype} of shape {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
        hint = "; for a mask, save mask.nonzero()[0]" if found.startswith("bool") else ""
        raise ValueError(f"{file}: holds {found}, expected indices, integers (N,){hint}")
    return torch.from_numpy(array.astype(np.int64))


def _read_lines(file: Path) -> Tensor:
    try:
        lines = file.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not text, expected a .npy file or one index on each line") from error
    indices = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                indices.append(int(line))
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: is {line.strip()!r}, expected an integer") from error
    return torch.tensor(indices, dtype=torch.int64)


def parameters(value: str | None) -> str | list[str] | None:
    """Parameters as methods take them: "last:K", or a list from names separated by commas."""
    return value if value is None or value.startswith("last:") else [name.strip() for name in value.split(",")]


def build_method(name: str, options: Sequence[str], **common: Any) -> Method:
    """The method with this name on the command line.

    Args:
        name: a key of :data:`unlearnx.methods.METHODS`.
        options: ``field=value`` for fields of the method, read as the type of the field.
        common: fields with their values; None leaves the method's default.

    Raises:
        ValueError: there is no such method or field, or the value does not fit.
    """
    if name not in METHODS:
        raise ValueError(f"--method is {name!r}, expected one of {', '.join(METHODS)}")
    kinds = _kinds(METHODS[name])
    values = {field: value for field, value in common.items() if value is not None}
    for option in options:
        field, equals, word = option.partition("=")
        if not equals:
            raise ValueError(f"--option is {option!r}, expected name=value")
        if field in OWN_OPTIONS:
            raise ValueError(f"--option {option}: use the option {OWN_OPTIONS[field]} instead")
        if field not in kinds:
            raise ValueError(f"--option {option}: {name} has no such option; it has {', '.join(kinds) or 'none'}")
        values[field] = _read(option, word, kinds[field])
    return METHODS[name](**values)


def _kinds(method: type[Method]) -> dict[str, tuple[type, ...]]:
    """The fields of a method that can be set by a word, and the types of each."""
    hints = typing.get_type_hints(method)
    kinds = {}
    for field in dataclasses.fields(method):
        allowed = typing.get_args(hints[field.name]) or (hints[field.name],)
        if field.name not in OWN_OPTIONS and all(kind in (*PLAIN_TYPES, type(None)) for kind in allowed):
            kinds[field.name] = allowed
    return kinds


def _read(option: str, word: str, kinds: tuple[type, ...]) -> Any:
    if type(None) in kinds and word.lower() == "none":
        return None
    numbers = {int, float} & set(kinds)
    for kind in PLAIN_TYPES:
        if kind in kinds and not (kind is str and numbers and _is_number(word)):
            try:
                return BOOLEANS[word.lower()] if kind is bool else kind(word)
            except (KeyError, ValueError):
                continue
    names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f"--option {option}: expected {names}")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
