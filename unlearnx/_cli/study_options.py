"""The options of a command that are declared elsewhere: by the studies that it runs, and for several commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

from unlearnx._cli.options import OF_STUDIES
from unlearnx.experiments.study import Study

Command = Callable[..., None]


def with_options_of(studies: Iterable[Study], leave_out: Sequence[str] = ()) -> Callable[[Command], Command]:
    """A decorator for a command whose keywords ``**own`` stand for all options of the studies.

    An argument of the command that is a dataclass stands for options with the names of its fields.

    Args:
        studies: that the command runs; its first argument says which.
        leave_out: names of options that it does not take.
    """
    offered = list(studies)
    names = [
        name for name in dict.fromkeys(name for study in offered for name in study.options) if name not in leave_out
    ]

    def decorated(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        which, *rest = (p for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD)
        own = [which.replace(name=name, default=None, annotation=_annotation(name, offered)) for name in names]
        grouped: dict[str, Any] = {p.name: p.annotation for p in rest if is_dataclass(p.annotation)}
        parameters = [which, *own, *(option for parameter in rest for option in _options(parameter))]

        @wraps(command)
        def called(**given: Any) -> None:
            for name, kind in grouped.items():
                given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            command(**given)

        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorated


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """The argument itself, or of a dataclass its fields."""
    kind = parameter.annotation
    if not is_dataclass(kind):
        return [parameter]
    hints = get_type_hints(kind, include_extras=True)
    return [parameter.replace(name=f.name, default=f.default, annotation=hints[f.name]) for f in fields(kind)]


def _annotation(name: str, offered: Sequence[Study]) -> Any:
    """Of a command's argument: the type of the option, its check and its help, which names the studies that have it."""
    owners: dict[str, list[str]] = {}
    for study in offered:
        if name in study.options:
            kind, text = study.options[name]
            owners.setdefault(text, []).append(study.name)
    texts = [text if len(own) == len(offered) else f"{text} ({', '.join(own)})" for text, own in owners.items()]
    return OF_STUDIES[kind]("; ".join(texts))
