"""Methods, solvers and trainings as JSON from which they can be built again, with all their arguments."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from unlearnx import methods, models
from unlearnx.curvature import solvers
from unlearnx.experiments.named_methods import plugins
from unlearnx.experiments.own_code import attribute

# Where names are looked up. A recipe may come from anyone: it can name public classes and functions of these only.
_CLASSES = {"method": methods, "solver": solvers, "training": models}
_FUNCTIONS = (F, models)
_METHODS = (methods.Method, methods.Pipeline)
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_recipe(value: Any, name: str = "value") -> Any:
    """`value` as JSON: a method is ``{"method": "SSD", "arguments": {...}}``, with all arguments but ``progress``.

    Args:
        value: a method, solver or training of unlearnx. Its arguments may be numbers, texts, lists, dtypes, again
            methods and solvers, and functions of ``torch.nn.functional`` and :mod:`unlearnx.models`, also partial ones
            with keywords. Tuples become lists. A method from elsewhere is ``{"method": "module:Method", ...,
            "source": ...}``, with the SHA-256 of its module's file: what it does may change while its arguments do not.
        name: of the value, for errors.

    Raises:
        ValueError: it contains anything else; the message names it.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, (list, tuple)):
        return [to_recipe(entry, f"{name}[{k}]") for k, entry in enumerate(value)]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    for kind, module in _CLASSES.items():
        if is_dataclass(value) and _public(module, type(value).__name__) is type(value):
            arguments = _each({f: getattr(value, f) for f in _arguments(value)}, name)
            return {kind: type(value).__name__, "arguments": arguments}
    if isinstance(value, _METHODS) and (source := _source(type(value))) is not None:
        arguments = _each({f: getattr(value, f) for f in _arguments(value)}, name)
        return {"method": _path(type(value)), "arguments": arguments, "source": source}
    if isinstance(value, partial) and not value.args:
        return {**to_recipe(value.func, name), "arguments": _each(value.keywords, name)}
    for module in _FUNCTIONS:
        called = getattr(value, "__name__", "")
        if callable(value) and _public(module, called) is value:
            return {"function": f"{module.__name__}.{called}"}
    raise ValueError(
        f"{name} is {value!r}, which a recipe cannot hold: expected plain values, methods, solvers and dtypes, or a "
        f"function of {' or '.join(module.__name__ for module in _FUNCTIONS)}"
    )


def sources(method: methods.Method | methods.Pipeline) -> list[str]:
    """The SHA-256 of the file of each method from elsewhere, as recipes have it: of a method, or a pipeline's stages.

    Raises:
        ValueError: a method is in no file that it can be imported from.
    """
    parts = [method, *method.stages] if isinstance(method, methods.Pipeline) else [method]
    kinds = [kind for kind in map(type, parts) if _public(methods, kind.__name__) is not kind]
    found = []
    for kind in kinds:
        source = _source(kind)
        if source is None:
            raise ValueError(f"methods: {_path(kind)} can be imported from no file, expected a class of a module")
        found.append(source)
    return found


def from_recipe(recipe: Any) -> Any:
    """The value that :func:`to_recipe` wrote.

    A method from elsewhere is looked up where its module has been imported already, or belongs to the package of a
    plug-in that is installed: nothing else is run because a file asks for it.

    Raises:
        ValueError: the recipe names something that unlearnx does not have, or has arguments that do not fit.
    """
    if isinstance(recipe, list):
        return [from_recipe(entry) for entry in recipe]
    if not isinstance(recipe, dict):
        return recipe
    if isinstance(dtype := getattr(torch, str(recipe.get("dtype")), None), torch.dtype):
        return dtype
    if (number := recipe.get("number")) in _NOT_FINITE:
        return _NOT_FINITE[number]
    for module in _FUNCTIONS:
        where, _, called = str(recipe.get("function")).rpartition(".")
        if where == module.__name__ and (function := _public(module, called)) is not None:
            given = recipe.get("arguments", {})
            if isinstance(given, dict):
                keywords = {name: from_recipe(entry) for name, entry in given.items()}
                return partial(function, **keywords) if keywords else function
    for kind, module in _CLASSES.items():
        found = _public(module, str(recipe.get(kind)))
        if kind == "method" and ":" in str(recipe.get(kind)):
            found = _from_elsewhere(recipe[kind])
        if is_dataclass(found):
            try:
                return found(**{name: from_recipe(entry) for name, entry in recipe["arguments"].items()})  # type: ignore[operator]
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"recipe: the arguments of {recipe[kind]} do not fit ({error})") from error
    raise ValueError(
        f"recipe: unlearnx has nothing for {recipe!r}, expected a method, solver, training, dtype or function"
    )


def _each(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: to_recipe(value, f"{name}.{key}") for key, value in values.items()}


def _public(module: Any, name: str) -> Any:
    """What a module has under a public name; None if it has nothing."""
    listed = getattr(module, "__all__", None)
    if name.startswith("_") or (listed is not None and name not in listed):
        return None
    return getattr(module, name, None)


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _source(kind: type) -> str | None:
    """The hash of the file that a class can be imported from by its name; None if there is none."""
    module = sys.modules[kind.__module__]
    file = getattr(module, "__file__", None)
    if file is None or kind.__module__ == "__main__" or getattr(module, kind.__qualname__, None) is not kind:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _from_elsewhere(path: str) -> Any:
    module = path.partition(":")[0]
    packages = {point.module.partition(".")[0] for points in plugins().values() for point in points}
    if module not in sys.modules and module.partition(".")[0] not in packages:
        raise ValueError(
            f"recipe: its method is {path}, and nothing is imported because a file says so, expected {module} to be "
            "imported already; unlearnx compare --methods makes the trial anew"
        )
    found = attribute("recipe: the method", path)
    if not (isinstance(found, type) and issubclass(found, _METHODS)):
        raise ValueError(f"recipe: the method is {path}, expected a subclass of Method or Pipeline")
    return found


def _arguments(value: Any) -> Iterator[str]:
    return (field.name for field in fields(value) if field.init and field.name != "progress")
