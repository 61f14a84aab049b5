"""Rows that a model picks from those of all samples, as where a router sends tokens to an expert, and whose they are.

Which rows are picked depends on the data, so that their places are no pattern of the model's. The number of a row's
sample goes along instead: through the call that picks, and through those that keep rows apart and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from unlearnx.curvature.places import Place, tensors_of


class Owners:
    """The sample of every row.

    Args:
        of: numbers of samples, (rows,).
    """

    def __init__(self, of: Tensor):
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Owners) and torch.equal(self.of, other.of))

    def __hash__(self) -> int:
        return len(self)

    @cached_property
    def slots(self) -> tuple[Tensor, int]:
        """Each row's place where samples follow each other with room for as many rows, and how many rows these are."""
        if not len(self):
            return self.of, 1
        order = self.of.argsort(stable=True)
        sorted_owners = self.of[order]
        number = torch.arange(len(self), device=self.of.device) - torch.searchsorted(sorted_owners, sorted_owners)
        most = int(number.max()) + 1
        return torch.empty_like(order).index_copy_(0, order, sorted_owners * most + number), most


@dataclass(frozen=True, kw_only=True)
class Scattered(Place):
    """A dimension of rows of samples, of some more than of others, in any order.

    Attributes:
        owners: whose they are.
    """

    owners: Owners
    folded: bool = True

    def first(self, t: Tensor, samples: int) -> Tensor:
        """(samples, ...) with as many positions for every sample, of zeros where it has fewer rows."""
        slots, most = self.owners.slots
        rows = t.movedim(self.axis, 0)
        whole = rows.new_zeros(samples * most, *rows.shape[1:]).index_copy_(0, slots, rows)
        return whole.unflatten(0, (samples, most)).movedim(1, self.axis + 1)

    def fits(self, t: Tensor, samples: int) -> bool:
        """Whether `t` may have these rows there."""
        return t.dim() > self.axis and t.shape[self.axis] == len(self.owners)


class ScatteredRows:
    """The tensors of a forward pass that hold such rows.

    Args:
        samples: number of samples in the batch.
    """

    def __init__(self, samples: int):
        self._samples = samples
        self._places = WeakTensorKeyDictionary()

    def __bool__(self) -> bool:
        return len(self._places) > 0

    def place(self, t: Tensor) -> Scattered | None:
        """Where the rows are in a tensor; None where it has none that are known."""
        return self._places.get(t) if self else None

    def note(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        result: Any,
        source: Callable[[Tensor], Place | None],
    ) -> None:
        """Note what a call has returned: rows that it picked, or those that it was given.

        Args:
            function, args, kwargs: the call.
            result: what it has returned.
            source: where the samples are in a tensor whose rows are picked; None where that is not known.
        """
        pick = picked(function, args, kwargs)
        if pick is not None:
            place = self.place(pick.x) or source(pick.x)
            if place is not None and place.axis == 0:
                self._places[result] = Scattered(axis=pick.axis, owners=self._picked(pick, place))
        elif self:
            self._follow(function, args, list(tensors_of((*args, *kwargs.values()))), result)

    def _picked(self, pick: Pick, place: Place) -> Owners:
        if isinstance(place, Scattered):
            own = place.owners.of
        else:
            own = torch.arange(self._samples, device=pick.x.device).repeat_interleave(len(pick.x) // self._samples)
        if pick.rows.dtype == torch.bool:
            own = own.view(-1, *[1] * (pick.rows.dim() - 1)).expand(pick.rows.shape)
        return Owners(own[pick.rows])

    def _follow(self, function: Callable[..., Any], args: Sequence[Any], given: Sequence[Tensor], result: Any) -> None:
        known = [(t, place) for t in given if (place := self.place(t)) is not None]
        if not known or any(place.owners != known[0][1].owners for _, place in known):
            return
        x, place = known[0]
        parts = list(tensors_of((result,)))
        if function in SPLITS and sum(t.shape[place.axis] for t in parts) == len(place.owners):  # the rows themselves
            owners = place.owners.of.split([t.shape[place.axis] for t in parts])
            self._places.update((t, replace(place, owners=Owners(own))) for t, own in zip(parts, owners, strict=True))
            return
        for t in parts:
            axis = _axis_after(function, args, x, place, t)
            if axis is not None:
                self._places[t] = Scattered(axis=axis, owners=place.owners)


@dataclass(frozen=True)
class Pick:
    """A call that picks rows of a tensor.

    Attributes:
        x: the tensor.
        rows: their numbers, (rows,), or a mask of its first dimensions.
        axis: their dimension in the result.
    """

    x: Tensor
    rows: Tensor
    axis: int


def picked(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Pick | None:
    """The call as one that picks rows along a tensor's first dimension; None where it is another."""
    if function not in PICKS or kwargs:
        return None
    if function is not Tensor.__getitem__:
        return Pick(args[0], args[2], 0) if len(args) == 3 and args[1] == 0 else None
    x, items = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
    axis = next((i for i, item in enumerate(items) if item is not None), len(items))
    rows = items[axis] if axis < len(items) else None
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.int64, torch.int32, torch.bool) or not rows.dim():
        return None
    others = items[axis + 1 :]
    beside = next((i for i, item in enumerate(others) if not isinstance(item, Tensor)), len(others))
    if any(isinstance(item, (Tensor, list)) for item in others[beside:]):  # which moves the dimension
        return None
    alike = all(t.shape == rows.shape and t.dtype != torch.bool for t in others[:beside])
    if rows.dtype == torch.bool:
        return Pick(x, rows, axis) if not beside else None
    return Pick(x, rows, axis) if rows.dim() == 1 and alike else None


def _axis_after(
    function: Callable[..., Any], args: Sequence[Any], x: Tensor, place: Scattered, result: Tensor
) -> int | None:
    """The dimension of the rows of x in the result of a function; None where it may not keep them."""
    rows, before = x.shape[place.axis], prod(x.shape[: place.axis])
    if function in RESHAPES:
        shape = result.shape
        return next((i for i, n in enumerate(shape) if n == rows and prod(shape[:i]) == before), None)
    if function is Tensor.__getitem__:
        items = args[1] if isinstance(args[1], tuple) else (args[1],)
        if not all(item is Ellipsis or isinstance(item, slice) for item in items):
            return None
    elif function not in ROW_BY_ROW and not (function in PRODUCTS and args and args[0] is x):
        return None
    axis = place.axis - x.dim() + result.dim()  # shapes are aligned at the last dimension
    return axis if result.dim() >= x.dim() and result.shape[axis] == rows else None


def _functions(*names: str) -> Iterator[Callable[..., Any]]:
    """The functions of torch with these names, and those that write to their first argument."""
    for name in names:
        for owner in (torch, Tensor, F):
            for full in (name, f"{name}_"):
                if callable(getattr(owner, full, None)):  # torch.float is no function
                    yield getattr(owner, full)


PICKS = {Tensor.__getitem__, Tensor.index_select, torch.index_select}
PRODUCTS = set(_functions("linear", "matmul", "__matmul__", "mm"))
SPLITS = set(_functions("chunk", "split", "tensor_split"))
RESHAPES = set(_functions("flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view"))
ROW_BY_ROW = set(
    _functions(
        *("abs", "add", "addcdiv", "addcmul", "bfloat16", "celu", "chunk", "clamp", "clamp_max", "clamp_min", "clip"),
        *("clone", "contiguous", "cos", "detach", "div", "divide", "double", "dropout", "elu", "erf", "exp", "float"),
        *("gelu", "half", "hardsigmoid", "hardswish", "hardtanh", "layer_norm", "leaky_relu", "lerp", "log"),
        *("logsigmoid", "maximum", "mean", "minimum", "mish", "mul", "multiply", "neg", "normalize", "pow"),
        *("reciprocal", "relu", "relu6", "rms_norm", "rsqrt", "rsub", "selu", "sigmoid", "silu", "sin", "softmax"),
        *("softplus", "softsign", "split", "sqrt", "square", "sub", "subtract", "tanh", "to", "true_divide", "type"),
        *("type_as", "where", "__rdiv__", "__rpow__", "__rsub__", "__rtruediv__"),
    )
)
