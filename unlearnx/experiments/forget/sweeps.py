"""Sweeps: values to try for one parameter of one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from unlearnx.experiments.comparison import interval
from unlearnx.experiments.forget.methods import Methods
from unlearnx.experiments.run_store import Entry
from unlearnx.methods import Method, Pipeline


@dataclass(frozen=True)
class Sweep:
    """Values to try for one parameter of one method."""

    method: str
    parameter: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, methods: Methods) -> Sweep:
        """Parse ``ssd.alpha=2,5,10``, or ``alpha=2,5,10`` if only one of the methods has such a parameter.

        Raises:
            ValueError: the text has another form, no method or more than one has the parameter, or a value is not valid
                for it.
        """
        target, _, listed = text.partition("=")
        named, _, parameter = target.rpartition(".")
        try:
            values = tuple(_number(value) for value in listed.split(","))
        except ValueError:
            raise ValueError(f"sweep is {text!r}, expected numbers as in ssd.alpha=2,5,10") from None
        owners = [name for name, method in methods.items() if named in ("", name) and parameter in _parameters(method)]
        if len(owners) != 1:
            having = f"{' and '.join(owners)} have" if owners else f"none of {', '.join(methods)} has"
            raise ValueError(f"sweep is {text!r}, but {having} a parameter {parameter!r}; name one, METHOD.PARAMETER=")
        if not all(float in _parameters(methods[owners[0]])[parameter] or isinstance(v, int) for v in values):
            raise ValueError(f"sweep is {text!r}, expected integers for {parameter}")
        sweep = cls(owners[0], parameter, values)
        sweep.variants(methods)  # raises an error if a value is not valid
        return sweep

    def variants(self, methods: Methods) -> Methods:
        """The method with each of the values, by the names of their trials."""
        method = methods[self.method]
        return {
            f"{self.method} {self.parameter}={value}": _changed(method, {self.parameter: value})
            for value in self.values
        }

    def result(self, methods: Methods, trials: Sequence[Mapping[str, Entry]]) -> dict[str, Any]:
        """What result.json holds of the sweep: means of the measures at each value over the seeds.

        Args:
            methods: that the study compares.
            trials: of each seed, by their names.
        """
        points = []
        for value, name in zip(self.values, self.variants(methods), strict=True):
            entries = [by_name[name] for by_name in trials]
            means = {key: interval([e["measures"].get(key) for e in entries])["mean"] for key in entries[0]["measures"]}
            everywhere = all(e["applied"] for e in entries)
            points.append({"value": value, "measures": means, "applied": everywhere})
        return {"method": self.method, "parameter": self.parameter, "points": points}


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _changed(method: Method | Pipeline, change: dict[str, Any]) -> Method | Pipeline:
    """The method with another value of a parameter; of a pipeline, of the stage that has it."""
    if not isinstance(method, Pipeline):
        return replace(method, **change)
    stages = [replace(s, **change) if change.keys() <= _parameters(s).keys() else s for s in method.stages]
    return replace(method, stages=stages)


def _parameters(method: Method | Pipeline) -> dict[str, list[Any]]:
    """The parameters that are numbers, and of which types; of a pipeline, those that one stage alone has."""
    if isinstance(method, Pipeline):
        stages = [_parameters(stage) for stage in method.stages]
        names = [name for stage in stages for name in stage]
        return {name: stage[name] for stage in stages for name in stage if names.count(name) == 1}
    hints = get_type_hints(type(method))
    allowed = {f.name: get_args(hints[f.name]) or (hints[f.name],) for f in fields(method) if f.name != "seed"}
    kinds: dict[str, list[Any]] = {
        name: [kind for kind in (int, float) if kind in types] for name, types in allowed.items()
    }
    return {name: found for name, found in kinds.items() if found}
