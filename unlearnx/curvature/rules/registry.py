"""Which functions of torch have a rule: how each call of one on parameters enters the gradients.

A rule is a class whose fields are the arguments of its function, so that a call is parsed once, whichever derivatives
are asked for. It knows two things, either of which may be missing: which tensors the per-sample gradients of the
parameters follow from (:meth:`Rule.watched`), and a form of the call that is cheap to differentiate twice
(:meth:`Rule.twice`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.places import Place

Parts = Iterable[tuple["Tensor | None", Contribution]]  # (parameter, its contribution)


class Recorder(Protocol):
    """What a rule sees of the :class:`~unlearnx.curvature.tape.Tape` that records the call."""

    samples: int

    def place(self, t: Tensor) -> Place | None:
        """Where the samples are in a tensor of the current call; None where it has none, or they are unknown."""

    def is_constant(self, t: Tensor) -> bool:
        """Whether a tensor of the current call is the same for all samples."""

    def put(self, t: Tensor, axis: int) -> Tensor:
        """Say that samples are dimension `axis` of `t`, for a call that a rule makes itself."""

    def place_of_result(self, result: Tensor) -> Place | None:
        """Where the samples are in what the current call is about to return."""

    def is_weight(self, t: Any) -> bool:
        """Whether `t` is a parameter, or made of parameters alone."""

    def made(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a function of weights and constants, whose tensors are weights from now on."""

    def watch(
        self, output: Tensor, parameters: Iterable[Tensor | None], contributions: Callable[[Tensor], Parts]
    ) -> Tensor:
        """The tensor to use in place of `output`; when its gradient dy is known, contributions(dy) are collected."""

    def spread(self, weight: Tensor, shape: Sequence[int], contributions: Callable[[Tensor], Parts]) -> Tensor:
        """`weight` once for every sample: expanded to `shape`; its gradient dy tells contributions(dy)."""

    def expect(self, parameters: Iterable[Tensor | None], contributions: Callable[..., Parts]) -> Callable[..., None]:
        """A function that the backward pass must call with the output gradients of one use of `parameters`."""

    def source(self, like: Tensor) -> Tensor:
        """A new zero that requires gradients, to make a watched output part of an autograd graph."""


class Rule:
    """One call of a function on parameters; subclasses are dataclasses of the function's arguments."""

    def watched(self, tape: Recorder) -> Any:
        """The function's result, watched by the tape; NotImplemented for arguments that the rule does not support."""
        return NotImplemented

    def twice(self, derivatives: Derivatives) -> Any:
        """The function's result in a form that is cheap to differentiate twice, or NotImplemented."""
        return NotImplemented


_RULES: dict[Callable[..., Any], Callable[..., Rule]] = {}
R = TypeVar("R", bound=Callable[..., Rule])


def rule_of(*functions: Callable[..., Any]) -> Callable[[R], R]:
    """Decorates the rule of the given functions."""

    def registered(rule: R) -> R:
        _RULES.update(dict.fromkeys(functions, rule))
        return rule

    return registered


def parsed(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rule | None:
    """The call by the rule of its function; None where there is no rule, or the arguments are others than it knows."""
    rule = _RULES.get(function)
    if rule is None:
        return None
    try:
        return rule(*args, **kwargs)
    except TypeError:
        return None
