"""Parameters in functions of single entries, which broadcast: scales, shifts, norms by hand, positions, gates.

The parameter is given to the function once for every sample, expanded without a copy, so that autograd gives its
gradient by sample.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unlearnx.curvature.contributions import StoredGradients
from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.linearised import Linearised
from unlearnx.curvature.places import Place, tensors_of
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of
from unlearnx.ops._dtypes import compute_dtype

FUNCTIONS = (
    *("add", "addcdiv", "addcmul", "div", "lerp", "maximum", "minimum", "mul", "pow", "rsub", "sub", "where"),
    *("atan2", "copysign", "divide", "hypot", "logaddexp", "multiply", "subtract", "true_divide", "xlogy"),
)
PRODUCTS = ("mul", "multiply")
REFLECTED = ("__rdiv__", "__rpow__", "__rsub__", "__rtruediv__")


class Elementwise(Rule):
    """A call of one of those functions, on one or more weights and tensors that have samples."""

    def __init__(self, function: Any, *args: Any, **kwargs: Any):
        self.function, self.args, self.kwargs = function, args, kwargs

    def watched(self, tape: Recorder) -> Any:
        given = list(tensors_of((*self.args, *self.kwargs.values())))
        data = [t for t in given if not tape.is_weight(t)]
        places = [(t, place) for t in data if (place := tape.place(t)) is not None]
        if len(places) < len([t for t in data if not tape.is_constant(t)]):
            return NotImplemented
        # Where the samples are, counted from the last dimension: shapes are aligned there.
        found = {(t.dim() - place.axis, t.shape[place.axis], replace(place, axis=0)) for t, place in places}
        if len(found) != 1 or any(isinstance(v, (tuple, list)) for v in self.args):
            return NotImplemented
        ((back, size, place),) = found
        weights = [t for t in given if tape.is_weight(t)]
        if any(t.dim() >= back and t.shape[-back] != 1 for t in weights) or "out" in self.kwargs:
            return NotImplemented
        if self.function.__name__.endswith("_") and tape.is_weight(self.args[0]):
            return NotImplemented

        def spread(t: Any) -> Any:
            return _by_sample(tape, t, back, size, place) if isinstance(t, Tensor) and tape.is_weight(t) else t

        return self.function(*map(spread, self.args), **{name: spread(t) for name, t in self.kwargs.items()})

    def twice(self, derivatives: Derivatives) -> Any:
        name = self.function.__name__
        if self.kwargs or len(self.args) != 2 or not isinstance(self.args[0], Tensor) or not self.args[0].requires_grad:
            return NotImplemented
        x, other = self.args
        if name == "pow" and isinstance(other, (int, float)) and other > 1:
            return derivatives.linearised(_Power(other), x)
        if name in PRODUCTS and isinstance(other, Tensor) and other.requires_grad:
            return derivatives.linearised(_Multiplication(), x, other)
        return NotImplemented


class _Power(Linearised):
    """A power above the first of every entry."""

    def __init__(self, exponent: float):
        self.exponent = exponent

    def value(self, x):
        return x**self.exponent

    def tangent(self, changes, xs):
        slope = xs[0] if self.exponent == 2 else xs[0] ** (self.exponent - 1)
        return changes[0] * slope * self.exponent

    def gradients(self, dy, xs, needed):
        return [self.tangent([dy], xs)]


class _Multiplication(Linearised):
    """``a * b``, which broadcasts."""

    def value(self, a, b):
        return a * b

    def tangent(self, changes, xs):
        (of_a, of_b), (a, b) = changes, xs
        if of_a is None or of_b is None:
            return of_a * b if of_b is None else a * of_b
        change = of_a * b
        wide = torch.broadcast_shapes(a.shape, b.shape)
        return change.addcmul_(a, of_b) if change.shape == wide else change + a * of_b

    def gradients(self, dy, xs, needed):
        return [
            (dy * other).sum_to_size(x.shape) if need else None
            for x, other, need in zip(xs, reversed(xs), needed, strict=True)
        ]

    def second_gradients(self, changes, dy, xs, needed):
        to_xs = [
            (dy * of_other).sum_to_size(x.shape) if need and of_other is not None else None
            for x, of_other, need in zip(xs, reversed(changes), needed, strict=True)
        ]
        return self.tangent(changes, xs), to_xs


def _by_sample(tape: Recorder, weight: Tensor, back: int, size: int, place: Place) -> Tensor:
    """The weight, repeated along the dimension of the samples, which is `back` from the end and has this size."""
    shape = [1] * (back - weight.dim()) + list(weight.shape)
    axis, samples = len(shape) - back, tape.samples
    shape[axis] = size

    def contributions(dy: Tensor) -> Parts:
        rows, wide = place.first(dy.movedim(axis, 0), samples), compute_dtype(dy)
        rows = rows.sum(1, dtype=wide) if place.folded else rows.to(wide)
        yield weight, StoredGradients(rows.reshape(samples, *weight.shape))

    return tape.spread(weight, shape, contributions)


for _name in FUNCTIONS:
    for _owner in (torch, Tensor):
        for _full in (_name, f"{_name}_"):
            if hasattr(_owner, _full):
                _function = getattr(_owner, _full)
                rule_of(_function)(partial(Elementwise, _function))
for _name in REFLECTED:
    rule_of(getattr(Tensor, _name))(partial(Elementwise, getattr(Tensor, _name)))
