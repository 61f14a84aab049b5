"""What a study is: all that the command line and reports know of one.

A study has a function that prepares it of its data and its options, and shows the result of a run as a page and as a
table. The registry (:mod:`unlearnx.experiments.registry`) has all studies by name.
"""

from __future__ import annotations

import inspect
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from unlearnx.experiments.report.frame import Page

if TYPE_CHECKING:
    from rich.table import Table

Result = dict[str, Any]

# Options that several studies have.
Epochs = Annotated[int | None, "epochs of each training"]
Limit = Annotated[int | None, "training images to use"]
Preset = Annotated[
    str,
    "default, reference (published protocol), best (poison-cifar), sweep (canary-alice) or neurips23 (forget-random-*)",
]


def check_preset(name: str, preset: str, *offered: str) -> None:
    """Refuse a preset that a study does not have: it has ``"default"``, and those that it offers besides.

    Raises:
        ValueError: the message names the study.
    """
    presets = "default", *offered
    if preset not in presets:
        raise ValueError(f"preset is {preset!r}, {name} has only {' and '.join(map(repr, presets))}")


@dataclass(kw_only=True)
class Prepared(ABC):
    """A study with its data and options, ready to run.

    Attributes:
        progress: show progress bars.
        log: is called with a line for each step.
    """

    progress: bool = True
    log: Callable[[str], None] = field(default=lambda line: None)

    @abstractmethod
    def room(self, seeds: int) -> int:
        """Bytes that a run of so many seeds writes at most, besides its report."""

    @abstractmethod
    def run(self, seeds: list[int], folder: Path) -> Result:
        """Run the study for each seed and save the models under `folder`; returns the content of result.json."""


@dataclass(frozen=True)
class Data:
    """Data that a study is given.

    Attributes:
        what: they are, in words.
        in_environment: whether ``UNLEARNX_DATA`` may name them.
    """

    what: str
    in_environment: bool = True


CIFAR10 = Data("the folder or archive of CIFAR-10", in_environment=False)
CIFAR100 = Data("the folder or archive of CIFAR-100", in_environment=False)


@dataclass(frozen=True)
class Study:
    """A study by name.

    Attributes:
        name: of the experiment.
        make: prepares it; its arguments are the path of the data, where it needs any, and keywords: ``progress``,
            whether to show progress bars, and its options.
        page: the report of a result.
        table: of a result, for the terminal; needs rich.
        needs: the data that it is given; None where they come with the package.
        seeds: number of runs where none is given.
        compared: of a study that measures methods against retraining and goes on where it stopped, the names of the
            methods that it takes where none are named; `make` then has a keyword ``methods``. None for all others.
    """

    name: str
    make: Callable[..., Prepared]
    page: Callable[[Result], Page]
    table: Callable[[Result], Table]
    needs: Data | None = None
    seeds: int = 1
    compared: tuple[str, ...] | None = None

    @cached_property
    def options(self) -> dict[str, tuple[type, str]]:
        """Type and help of every option, by name: of the keywords of `make` that are annotated with a sentence.

        The type is the first of a union: ``Annotated[int | None, "epochs of each training"]`` is an integer.
        """
        found = {}
        for name, annotation in _annotations(self.make).items():
            if get_origin(annotation) is Annotated:
                kind, text, *_ = get_args(annotation)
                found[name] = (get_args(kind)[0] if isinstance(kind, types.UnionType) else kind, text)
        return found


def _annotations(make: Callable[..., Prepared]) -> dict[str, Any]:
    """The annotations of a function's arguments; of ``**options: Unpack[Options]``, those of the typed dictionary."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(make, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (keywords,) = get_args(parameter.annotation)
            found |= get_type_hints(keywords, include_extras=True)
        else:
            found[name] = parameter.annotation
    return found
