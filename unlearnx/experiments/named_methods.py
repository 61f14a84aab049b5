"""Methods by name: those of unlearnx, those of plug-ins, and a user's own, ``module:Method``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from unlearnx._warnings import warn
from unlearnx.experiments.own_code import attribute, failure, own
from unlearnx.methods import METHODS, Method, Pipeline

GROUP = "unlearnx.methods"  # of the entry points of plug-ins

Named = type[Method] | type[Pipeline] | Method | Pipeline


def plugins() -> dict[str, list[EntryPoint]]:
    """The methods that installed packages offer, by name; none of these is imported.

    A name of one of unlearnx's own methods is not given to another: a warning says whose that is.
    """
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        if point.name in METHODS:
            warn(
                f"the plug-in {point.value} of {_package(point)} is not taken: unlearnx has a method named "
                f"{point.name!r}; its own name, {point.value}, still stands for it"
            )
        else:
            found.setdefault(point.name, []).append(point)
    return found


def named_method(argument: str, name: str) -> Named:
    """What a name stands for: a method without its arguments, or one with them.

    Args:
        argument: where the name was given, for errors.
        name: a key of :data:`unlearnx.methods.METHODS`, or as for a plug-in or a user's own method.

    Raises:
        ValueError: there is no such method.
    """
    return METHODS[name] if name in METHODS else _found_elsewhere(argument, name, METHODS)


def method_with_arguments(name: str, known: Iterable[str]) -> Method | Pipeline:
    """A method that a study has no arguments for: with its own, or else with its defaults.

    Args:
        name: a key of :data:`unlearnx.methods.METHODS`, the name of a plug-in, or ``module:Method``.
        known: names that the study knows besides, for errors.

    Raises:
        ValueError: there is no such method, or it has no defaults.
    """
    found = METHODS[name] if name in METHODS else _found_elsewhere("methods", name, dict.fromkeys([*known, *METHODS]))
    if not isinstance(found, type):
        return found
    make: Callable[[], Method | Pipeline] = found
    try:
        return make()
    except Exception as error:
        raise failure("methods", name, error) from error


def _found_elsewhere(argument: str, name: str, known: Iterable[str]) -> Named:
    if ":" in name:
        return _checked(argument, name, own(argument, name))
    offered = plugins()
    point, *others = offered.get(name, [None])
    if others:
        raise ValueError(
            f"{argument}: {name!r} is a plug-in of each of {', '.join(map(_package, offered[name]))}, expected one; "
            f"{' or '.join(one.value for one in offered[name])} stands for either"
        )
    if point is not None:
        what = f"{argument} {name}, a plug-in of {_package(point)},"
        return _checked(what, point.value, attribute(what, point.value))
    raise ValueError(
        f"{argument}: {name!r} is unknown, expected names among {', '.join([*known, *offered])}, or module:Method"
    )


def _checked(argument: str, name: str, found: object) -> Named:
    if isinstance(found, (Method, Pipeline)) or (isinstance(found, type) and issubclass(found, (Method, Pipeline))):
        return found
    what = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
    raise ValueError(f"{argument} is {name!r}, which is {what}, expected a subclass of Method, a method or a Pipeline")


def _package(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else point.dist.name
