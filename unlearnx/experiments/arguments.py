"""Values from the words of a command line: a user's functions, indices in files, options of methods."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnx.experiments.hugging_face import folder_factory
from unlearnx.experiments.named_methods import named_method
from unlearnx.experiments.own_code import failure, own
from unlearnx.methods import Method, Pipeline

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
    if value.startswith(f"{HUGGING_FACE}:"):
        raise ValueError(
            f"{argument} is {value!r}, expected module:function; {HUGGING_FACE}:FOLDER is for --model alone"
        )
    found = own(argument, value)
    if not callable(found):
        raise ValueError(f"{argument} is {value!r}, which is {type(found).__name__}, expected a function or class")

    def call() -> Any:
        try:
            return found()
        except (Exception, SystemExit) as error:
            raise failure(argument, value, error) from error

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
        name: as for :func:`unlearnx.experiments.named_methods.named_method`.
        options: ``field=value`` for fields of the method, read as the type of the field.
        common: fields with their values; None leaves the method's own.

    Raises:
        ValueError: there is no such method or field, or the value does not fit.
    """
    found = named_method("--method", name)
    if isinstance(found, Pipeline) or (isinstance(found, type) and issubclass(found, Pipeline)):
        raise ValueError(f"--method is {name!r}, which is a Pipeline, expected a single method")
    kind = found if isinstance(found, type) else type(found)
    kinds = _kinds(kind) if options else {}
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
    return found(**values) if isinstance(found, type) else dataclasses.replace(found, **values)


def leaves_open(name: str, field: str) -> bool:
    """Whether the method has such a field, and the name is that of a class, whose fields have no values yet.

    Raises:
        ValueError: as for :func:`unlearnx.experiments.named_methods.named_method`.
    """
    found = named_method("--method", name)
    return isinstance(found, type) and field in {own.name for own in dataclasses.fields(found)}


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
