"""Where the samples are in the tensors of a call, found by comparing a pass over several samples with one over one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Place:
    """The dimension of the samples in a tensor.

    Attributes:
        axis: the dimension.
        folded: whether it also holds positions, those of a sample following each other, as after ``x.view(-1, width)``.
    """

    axis: int
    folded: bool = False

    def first(self, t: Tensor, samples: int) -> Tensor:
        """The tensor with the samples as its first dimension, (samples, ...)."""
        if self.folded:
            t = t.unflatten(self.axis, (samples, -1))
        return t.movedim(self.axis, 0)

    def fits(self, t: Tensor, samples: int) -> bool:
        """Whether `t` may have so many samples there."""
        if t.dim() <= self.axis:
            return False
        size = t.shape[self.axis]
        return size % samples == 0 if self.folded else size == samples


UNKNOWN = Place(-1)
Found = Place | None  # None: the tensor is the same for all samples


def place(shape: torch.Size, alone: torch.Size, samples: int) -> Found:
    """Where the samples are in a tensor that has this shape for several of them, and `alone` for one."""
    if len(shape) != len(alone):
        return UNKNOWN
    differing = [i for i, (a, b) in enumerate(zip(shape, alone, strict=True)) if a != b]
    if not differing:
        return None
    axis = differing[0]
    if len(differing) > 1 or shape[axis] != samples * alone[axis]:
        return UNKNOWN
    return Place(axis, folded=alone[axis] != 1)


QUERIES = {"dim", "element_size", "is_complex", "is_contiguous", "is_floating_point", "numel", "size", "stride"}
TENSOR_ATTRIBUTES = {"H", "T", "data", "grad", "imag", "mH", "mT", "real"}


def is_query(function: Callable[..., Any]) -> bool:
    """Whether a function asks for a shape, a dtype or the like: modules do so more or less often."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(getattr(function, "__self__", None), "__name__", "") not in TENSOR_ATTRIBUTES
    return name in QUERIES


class Labels:
    """Names for the calls of a pass, by which another pass finds the same ones.

    A call on parameters is known by them, any other by what came since the last one on parameters. So the passes may
    differ now and then, as where a model leaves out a mask that hides nothing.

    Args:
        names: of the parameters, by identity.
    """

    def __init__(self, names: dict[int, str]):
        self._names = names
        self._times: Counter[Any] = Counter()
        self._since: Counter[Any] = Counter()
        self._last: Any = None

    def of(self, function: Callable[..., Any], given: Sequence[Tensor]) -> Any:
        """The label of the next call."""
        used = tuple(self._names[id(t)] for t in given if id(t) in self._names)
        if not used:
            self._since[function] += 1
            return function, self._last, self._since[function]
        self._times[function, used] += 1
        self._last = (function, used, self._times[function, used])
        self._since.clear()
        return self._last


@dataclass(frozen=True)
class CallShapes:
    """The shapes of a call's tensors and of its results."""

    given: list[torch.Size]
    results: list[torch.Size]


class ShapeLog(TorchFunctionMode):
    """Notes the shapes in every call of a function while it is active, but for queries.

    Args:
        parameters: by name.

    Attributes:
        calls: by label.
    """

    def __init__(self, parameters: dict[str, Tensor]):
        super().__init__()
        self.calls: dict[Any, CallShapes] = {}
        self._labels = Labels({id(p): name for name, p in parameters.items()})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_query(func):
            return func(*args, **kwargs)
        given = list(tensors_of((*args, *kwargs.values())))
        label, shapes = self._labels.of(func, given), [t.shape for t in given]
        result = func(*args, **kwargs)
        self.calls[label] = CallShapes(shapes, [t.shape for t in tensors_of((result,))])
        return result


def tensors_of(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_of(value)
