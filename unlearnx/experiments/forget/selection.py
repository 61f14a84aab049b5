"""What the studies share that prepare themselves of a table of methods: the methods chosen of it, and the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from torch import nn

from unlearnx.data import Splits
from unlearnx.experiments.forget.methods import Methods
from unlearnx.experiments.forget.study import ForgetStudy
from unlearnx.experiments.forget.sweeps import Sweep
from unlearnx.experiments.named_methods import method_from_elsewhere
from unlearnx.models import Training

_CLASS = "name or number of the class to forget"
ForgetClass = Annotated[str | int, _CLASS]
ForgetClassOrOwn = Annotated[str | int | None, _CLASS]  # None for the one that the study has of itself
Share = Annotated[float, "share of the training images to forget"]
Sweeps = Annotated[Sequence[str], "values to try for a method's parameter: ssd.alpha=2,5,10"]


def study_of(
    name: str,
    splits: Splits,
    network: Callable[[], nn.Module],
    training: Training,
    table: Callable[[int | None], Methods],
    *,
    forget_class: int | None = None,
    methods: Sequence[str] | None = None,
    sweep: Sequence[str] = (),
    **settings: Any,
) -> ForgetStudy:
    """A study of the methods that are named in `methods` or in a sweep: of a table, of plug-ins, or a user's own.

    Raises:
        ValueError: a method, or the parameter of a sweep, is unknown.
    """
    offered = table(forget_class)
    swept = [owner for text in sweep if (owner := text.partition("=")[0].rpartition(".")[0])]
    names = list(dict.fromkeys([*(offered if methods is None else methods), *swept]))
    chosen = {
        wanted: offered[wanted] if wanted in offered else method_from_elsewhere(wanted, offered) for wanted in names
    }
    sweeps = [Sweep.parse(text, chosen) for text in sweep]
    return ForgetStudy(name, splits, network, training, chosen, forget_class, sweeps=sweeps, **settings)


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
