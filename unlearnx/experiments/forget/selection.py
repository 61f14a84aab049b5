"""What the studies share that prepare themselves of a table of methods: their options, the methods, and the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypedDict

from torch import nn

from unlearnx.data import Splits
from unlearnx.experiments.forget.methods import Methods
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.forget.sweeps import Sweep
from unlearnx.experiments.named_methods import method_with_arguments
from unlearnx.experiments.study import Epochs
from unlearnx.models import Training

_CLASS = "name or number of the class to forget"
ForgetClass = Annotated[str | int, _CLASS]
ForgetClassOrOwn = Annotated[str | int | None, _CLASS]  # None for the one that the study has of itself
Share = Annotated[float, "share of the training images to forget"]
Sweeps = Annotated[Sequence[str], "values to try for a method's parameter: ssd.alpha=2,5,10"]


class Common(TypedDict, total=False):
    """The keywords that all of these studies have; :func:`study_of` has their defaults."""

    epochs: Epochs
    methods: Sequence[str] | None
    sweep: Sweeps
    progress: bool


def study_of(
    name: str,
    splits: Splits,
    network: Callable[[], nn.Module],
    training: Training,
    table: Callable[[int | None], Methods],
    own: dict[str, Any],
    *,
    epochs: int | None = None,
    methods: Sequence[str] | None = None,
    sweep: Sequence[str] = (),
    progress: bool = True,
) -> ForgetStudy:
    """A study of the methods that are named in `methods` or in a sweep: those of a table with its arguments, others of
    unlearnx with their defaults, plug-ins, or a user's own.

    Args:
        name, splits, network: of the study.
        training: of networks.
        table: the methods with their arguments for a class, or for a random share (None).
        own: what is to be forgotten, and other attributes of the study.
        epochs: of each training; those of `training` where not given.
        methods: names of those to compare; all of the table where not given.
        sweep: texts such as ``"ssd.alpha=2,5,10"``, see :meth:`Sweep.parse`.
        progress: show progress bars.

    Raises:
        ValueError: a method, or the parameter of a sweep, is unknown.
    """
    training = training if epochs is None else replace(training, epochs=epochs)
    offered = table(own.get("forget_class"))
    swept = [owner for text in sweep if (owner := text.partition("=")[0].rpartition(".")[0])]
    names = list(dict.fromkeys([*(offered if methods is None else methods), *swept]))
    chosen = {
        wanted: offered[wanted] if wanted in offered else method_with_arguments(wanted, offered) for wanted in names
    }
    sweeps = [Sweep.parse(text, chosen) for text in sweep]
    return ForgetStudy(name, splits, network, training, chosen, sweeps=sweeps, progress=progress, **own)


def class_number(splits: Splits, wanted: str | int) -> int:
    """The number of a class that is given by its name or number.

    Raises:
        ValueError: there is no such class.
    """
    if wanted in splits.classes:
        return splits.classes.index(str(wanted))
    if str(wanted).isdigit() and int(wanted) < len(splits.classes):
        return int(wanted)
    raise ValueError(f"forget_class is {wanted!r}, expected one of {', '.join(splits.classes)}, or its number")
