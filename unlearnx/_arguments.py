"""Arguments of public functions: checked by the kinds that their annotations name, with errors that name them."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from unlearnx._batches import tensors
from unlearnx._checks import fits_64_bits, is_integer, is_number, known_as, shown
from unlearnx._data import Data, Samples
from unlearnx._models import check_has_values

F = TypeVar("F", bound=Callable[..., Any])


class Kind(NamedTuple):
    """What an annotation asks for, in words and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


def _of(expected: str, *classes: type) -> Kind:
    return Kind(expected, lambda value: isinstance(value, classes))


FUNCTION = Kind("a function", callable)


def _is_data(value: Any) -> bool:
    """Roughly: what samples are not is said in more words where they are read."""
    return not isinstance(value, type)


KINDS: dict[str, Kind] = {
    "None": Kind("None", lambda value: value is None),
    "bool": _of("True or False", bool, np.bool_),
    "int": Kind("an integer", is_integer),
    "float": Kind("a number", is_number),
    "str": _of("a string", str),
    "Path": _of("a path", str, os.PathLike),
    "Tensor": Kind("a dense tensor with values", lambda value: _is_dense(value)),
    "nn.Module": _of("a torch.nn.Module", nn.Module),
    "Loss": Kind("a function loss_fn(output, y)", lambda value: callable(value) and not isinstance(value, type)),
    "Factory": FUNCTION,
    "Callable[[], nn.Module]": FUNCTION,
    "Callable[[Tensor, Tensor], Tensor | float]": FUNCTION,
    "Fit": FUNCTION,
    "Score": FUNCTION,
    "torch.device": Kind("a device that is here", lambda value: _is_here(value)),
    "torch.dtype": Kind("a floating dtype such as torch.bfloat16", lambda value: _is_floating(value)),
    "torch.Generator": _of("a torch.Generator", torch.Generator),
    "Data": Kind("samples (x, y)", _is_data),
    "Preconditioner": Kind(
        "EKFAC(), KFAC(), Factors", lambda value: hasattr(value, "factors_for") and not isinstance(value, type)
    ),
    "Mapping[str, float]": Kind("a mapping of names to numbers", lambda value: _maps_names(value, is_number)),
    "Request": Kind("a Request", lambda value: _is_request(value)),
    "Sequence[Method]": _of("a list of methods", Sequence),
    "Sequence[Request]": _of("a list of requests", Sequence),
    "Vector": Kind("a mapping of names to dense tensors with values", lambda value: _maps_names(value, _is_dense)),
}
SETS = ("Data", "Request")  # kinds of arguments with samples, which errors found later call data


def checked(function: F) -> F:
    """Refuse arguments that are not of the kind of their annotation (KINDS, or a class of the package).

    Errors about ``data`` that are found later, such as samples that the model does not take, name the arguments that
    hold samples.

    Raises:
        TypeError: an argument is of another kind; the message names it.
        ValueError: the samples of one are not there, or cannot be read.
    """
    signature = inspect.signature(function)
    annotations = {name: str(p.annotation) for name, p in signature.parameters.items()}
    sets = [name for name, annotation in annotations.items() if _parts(annotation)[0] in SETS]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # whose own error names the function
        for name, value in given.items():
            check_kind(name, value, annotations[name], function.__globals__)
            if isinstance(value, nn.Module):
                check_has_values(name, value)
        with known_as(data=", ".join(name for name in sets if given.get(name) is not None) or "data"):
            return function(**{name: _plain(value, annotations[name]) for name, value in given.items()})

    return call  # type: ignore[return-value]


def check_fields(instance: Any) -> None:
    """The same for the fields of a dataclass.

    Raises:
        TypeError: one is of another kind; the message names it.
    """
    owners = {name: cls for cls in reversed(type(instance).__mro__) for name in vars(cls).get("__annotations__", {})}
    for field in fields(instance):
        scope = vars(sys.modules.get(owners[field.name].__module__, object))
        value = getattr(instance, field.name)
        check_kind(field.name, value, str(field.type), scope)
        setattr(instance, field.name, _plain(value, str(field.type)))


def check_kind(name: str, value: Any, annotation: str, scope: Mapping[str, Any]) -> None:
    """Refuse a value that is of none of the kinds of an annotation, whose names are those of `scope`."""
    parts = [part for part in _parts(annotation) if not (part == "str" and "torch.device" in annotation)]
    kinds = [KINDS.get(part) or _class_kind(scope.get(part)) for part in parts]
    known = [kind for kind in kinds if kind is not None]
    if len(known) == len(kinds) and not any(kind.accepts(value) for kind in known):
        expected = " or ".join(dict.fromkeys(kind.expected for kind in known))
        raise TypeError(f"{name} is {shown(value)}, expected {expected}")
    if is_integer(value) and not fits_64_bits(value):
        raise ValueError(f"{name} is {shown(value)}, expected an integer of 64 bits")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name} is nan, expected a number")
    if "Data" in parts and not any(kind.accepts(value) for kind in known if kind is not KINDS["Data"]):
        with known_as(data=name):
            _check_samples(value)


def _plain(value: Any, annotation: str) -> Any:
    """NumPy's integers as Python's, and strings as paths: what the functions take that these values are handed to."""
    if isinstance(value, np.integer):
        return int(value)
    return Path(value) if isinstance(value, str) and annotation in ("Path", "Path | None") else value


def _parts(annotation: str) -> list[str]:
    """The members of a union; what is in brackets is not taken apart."""
    return [part.strip() for part in re.split(r"\|(?![^\[]*\])", annotation)]


def _class_kind(found: Any) -> Kind | None:
    return _of(f"a {found.__name__}", found) if isinstance(found, type) and found is not Any else None


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


def _is_here(value: Any) -> bool:
    if not isinstance(value, (str, torch.device)):
        return False
    try:
        torch.empty(0, device=value)
    except (AssertionError, RuntimeError):  # torch's for no such kind, and for none of the kind
        return False
    return torch.device(value).type != "meta"


def _is_request(value: Any) -> bool:
    from unlearnx.methods.request import Request  # which checks its own arguments by this module

    return isinstance(value, Request)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _maps_names(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and accepts(v) for k, v in value.items())


def _check_samples(data: Data) -> None:
    Samples(data)
    if type(data) is DataLoader and type(data.dataset) is TensorDataset:
        data = data.dataset
        Samples(data)
    if isinstance(data, DataLoader) or (isinstance(data, Dataset) and type(data) is not TensorDataset):
        return  # read on demand
    for t in tensors(data.tensors if isinstance(data, TensorDataset) else data):
        if t.is_meta or t.layout not in (torch.strided, torch.jagged):
            what = "on the meta device, without values" if t.is_meta else f"of layout {t.layout}"
            raise ValueError(f"data: holds a tensor {what}, expected dense ones with values")
