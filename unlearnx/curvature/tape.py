"""A forward pass that records, for every parameter, what its per-sample gradients are computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unlearnx.curvature.composed import join
from unlearnx.curvature.contributions import Contribution
from unlearnx.curvature.places import UNKNOWN, CallShapes, Found, Labels, Place, ShapeLog, is_query, place, tensors_of
from unlearnx.curvature.rules.registry import Parts, parsed
from unlearnx.curvature.scattered import ScatteredRows
from unlearnx.curvature.weights import Derived, Parameter, Weight

Places = dict[Any, "tuple[Found, ...]"]


class Tape(TorchFunctionMode):
    """Watches the functions that a model calls on its parameters, in any module and any number of times.

    Run the model inside of ``with tape:``, with `parameters` that do not require gradients. Then, once or more,
    differentiate the losses with respect to ``tape.sources`` and call :meth:`finish`. During the backward pass each
    parameter's contribution goes to `on_contribution` as soon as all uses of the parameter have their gradients, so
    that the output gradients of one layer at a time are in memory. Weight gradients of the batch are never computed.

    What functions make of parameters and constants alone, such as a weight's transpose or the embeddings of positions,
    is a weight too: its gradients are taken on to the parameters'.

    Args:
        parameters: the parameters to watch, by name.
        on_contribution: called with the name and the contribution of a parameter.
        samples: number of samples N in the batch.
        places: the :attr:`places` that a first pass over a few samples found; None for that first pass.
        alone: for the first pass, the shapes in a pass over one sample.
        on_scale: called for every use with the contribution of the absolute values of the output gradients, which tells
            what is rounding in a sum that cancels.

    Attributes:
        sources: the tensors that require gradients, added to the watched outputs so that a backward pass reaches them.
        places: where the samples are in the tensors of a call, by function, parameters and numbers of dimensions.
        seen: the parameters that functions were called with.
        ambiguous: parameters used in calls whose samples had to be guessed by their number.
        bytes: memory of the outputs of watched calls.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        on_contribution: Callable[[str, Contribution], None],
        samples: int,
        places: Places | None = None,
        *,
        alone: ShapeLog | None = None,
        on_scale: Callable[[str, Contribution], None] | None = None,
    ):
        super().__init__()
        self.sources: list[Tensor] = []
        self.places: Places = {} if places is None else places
        self.seen: set[str] = set()
        self.ambiguous: set[str] = set()
        self.bytes = 0
        self.samples = samples
        self._weights: dict[int, Weight] = {id(p): Parameter(name, p) for name, p in parameters.items()}
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._on_contribution, self._on_scale = on_contribution, on_scale
        self._first, self._alone = places is None, {} if alone is None else alone.calls
        self._labels = Labels({id(p): name for name, p in parameters.items()})
        self._call: CallShapes | None = None  # the current one, in the pass over one sample
        self._expected: Counter[str] = Counter()
        self._collected: dict[str, list[Contribution]] = {}
        self._unknown: set[str] = set()
        self._rows = ScatteredRows(samples)
        self._here: dict[int, Found] = {}  # places of the tensors of the current call, by identity
        self._key: Any = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_query(func):
            return func(*args, **kwargs)
        given = list(tensors_of((*args, *kwargs.values())))
        if self._first:
            self._call = self._alone.get(self._labels.of(func, given))
        weights = [self._weights[id(t)] for t in given if id(t) in self._weights]
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        result = self._watched(func, args, kwargs, given, weights) if weights else func(*args, **kwargs)
        self._rows.note(func, args, kwargs, result, partial(self._source_of_rows, func))
        return result

    def _watched(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Tensor],
        weights: list[Weight],
    ) -> Any:
        """The result of a call on weights."""
        used = frozenset(name for w in weights for name in w.leaves)
        self._locate(func, used, given)
        versions = [w.tensor._version for w in weights]
        call = parsed(func, args, kwargs)
        result = NotImplemented if call is None else call.watched(self)
        if result is NotImplemented:
            constant = all(self.is_constant(t) for t in given)
            result = self.made(func, *args, **kwargs) if constant else func(*args, **kwargs)
            if not constant and any(True for _ in tensors_of((result,))):
                self.seen |= used
                self._unknown |= used
        else:
            self.seen |= used
        if versions != [w.tensor._version for w in weights]:  # written to
            self._unknown |= used
        return result

    def made(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a function of weights and constants, whose tensors are weights from now on."""
        own = {id(t): self._weights[id(t)] for t in tensors_of((*args, *kwargs.values())) if id(t) in self._weights}

        def replaced(value: Any, of: Callable[[Tensor], Any]) -> Any:
            if isinstance(value, Tensor):
                return of(value)
            return type(value)(replaced(v, of) for v in value) if type(value) in (tuple, list) else value

        def graph(t: Tensor) -> Tensor:
            return own[id(t)].graph if id(t) in own else t

        with torch.enable_grad():
            result = function(*replaced(args, graph), **{k: replaced(v, graph) for k, v in kwargs.items()})
        known = {id(w.graph): w for w in own.values()}

        def weight(t: Tensor) -> Tensor:
            if id(t) in known or not t.requires_grad:
                return known[id(t)].tensor if id(t) in known else t
            found = Derived(t, function, args, kwargs, list(own.values()))
            self._weights[id(found.tensor)] = found
            return found.tensor

        return replaced(result, weight)

    def is_weight(self, t: Any) -> bool:
        """Whether `t` is a parameter, or made of parameters alone."""
        return id(t) in self._weights

    def place(self, t: Tensor) -> Place | None:
        """Where the samples are in a tensor of the current call; None where it has none, or they are unknown."""
        found = self._here.get(id(t))
        return found if found is not None and found is not UNKNOWN and found.fits(t, self.samples) else None

    def is_constant(self, t: Tensor) -> bool:
        """Whether a tensor of the current call is the same for all samples."""
        return not t.requires_grad and self._here.get(id(t), UNKNOWN) is None

    def put(self, t: Tensor, axis: int) -> Tensor:
        """Say that samples are dimension `axis` of `t`, for a call that a rule makes itself."""
        self._here[id(t)] = Place(axis)
        return t

    def place_of_result(self, result: Tensor) -> Place | None:
        """Where the samples are in what the current call is about to return."""
        key = (self._key, result.dim())
        if self._first:
            shapes = [] if self._call is None else self._call.results
            self._note(key, (place(result.shape, shapes[0], self.samples) if len(shapes) == 1 else UNKNOWN,))
        (found,) = self.places.get(key, (UNKNOWN,))
        return found if found is not None and found is not UNKNOWN and found.fits(result, self.samples) else None

    def watch(self, output: Tensor, parameters: Iterable[Tensor | None], contributions: Callable[[Tensor], Parts]):
        """The tensor to use in place of `output`; when its gradient dy is known, contributions(dy) are collected."""
        on_gradient = self.expect(parameters, contributions)
        self.bytes += output.numel() * output.element_size()
        if output.requires_grad:
            output.register_hook(on_gradient)
            return output
        if output._is_view():
            output = output.clone()
        return _GradientTap.apply(output, self.source(output), on_gradient)

    def spread(self, weight: Tensor, shape: Sequence[int], contributions: Callable[[Tensor], Parts]) -> Tensor:
        """`weight` once for every sample, expanded to `shape`; when its gradient dy is known, contributions(dy) are."""
        on_gradient = self.expect((weight,), contributions)
        return _Spread.apply(weight, self.source(weight), tuple(shape), on_gradient)

    def expect(self, parameters: Iterable[Tensor | None], contributions: Callable[..., Parts]) -> Callable[..., None]:
        """A function that the backward pass must call with the output gradients of one use of `parameters`."""
        for p in parameters:
            if id(p) in self._weights:
                self._expected.update(list(self._weights[id(p)].leaves))

        def named(*dy: Tensor) -> Iterator[tuple[str, Contribution]]:
            for parameter, contribution in contributions(*dy):
                if id(parameter) in self._weights:
                    yield from self._weights[id(parameter)].pulled(contribution)

        def on_gradient(*dy: Tensor) -> None:
            for name, contribution in named(*(g.detach() for g in dy)):
                self._collect(name, contribution)
            if self._on_scale is not None:
                for name, contribution in named(*(g.detach().abs() for g in dy)):
                    self._on_scale(name, contribution)

        return on_gradient

    def source(self, like: Tensor) -> Tensor:
        """A new zero that requires gradients, to make a watched output part of an autograd graph."""
        self.sources.append(torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True))
        return self.sources[-1]

    def finish(self) -> set[str]:
        """End a backward pass.

        Returns:
            The parameters that are done: their contributions were delivered, or they do not influence the losses. The
            other parameters were used in functions without a rule.
        """
        for name in list(self._collected):  # their missing uses got no gradients: the losses do not depend on them
            self._deliver(name)
        return set(self._expected) - self._unknown

    def _locate(self, func: Callable[..., Any], used: frozenset[str], given: list[Tensor]) -> None:
        """Find the places of the tensors of a call."""
        data = [(i, t) for i, t in enumerate(given) if id(t) not in self._weights]
        rows = {id(t): own for _, t in data if (own := self._rows.place(t)) is not None}
        data = [(i, t) for i, t in data if id(t) not in rows]
        self._key = (func, used, tuple(t.dim() for t in given))
        if self._first and data:
            if self._call is None or len(self._call.given) != len(given):
                self.ambiguous |= used
                found = tuple(self._guessed(t) for _, t in data)
            else:
                found = tuple(place(t.shape, self._call.given[i], self.samples) for i, t in data)
            self._note(self._key, found)
        known = self.places.get(self._key, ())
        places = known if len(known) == len(data) else (UNKNOWN,) * len(data)
        self._here = dict.fromkeys((id(t) for t in given), None)
        self._here |= {id(t): found for (_, t), found in zip(data, places, strict=True)} | rows

    def _source_of_rows(self, func: Callable[..., Any], x: Tensor) -> Place | None:
        """Where the samples are in a tensor whose rows a call picks; rows themselves depend on the data."""
        if self.is_weight(x):
            return None
        key = (func, "rows", x.dim(), x.requires_grad)
        if self._first and self._call is not None:
            self._note(key, (place(x.shape, self._call.given[0], self.samples),))
        elif self._first and x.requires_grad:
            self._note(key, (self._guessed(x),))
        (found,) = self.places.get(key, (UNKNOWN,))
        return found if found is not None and found is not UNKNOWN and found.fits(x, self.samples) else None

    def _guessed(self, t: Tensor) -> Found:
        if self.samples in t.shape:
            return Place(list(t.shape).index(self.samples))
        is_activation = t.requires_grad and t.dim() > 0
        return Place(0, folded=True) if is_activation and len(t) % self.samples == 0 else None

    def _note(self, key: Any, found: tuple[Found, ...]) -> None:
        """Remember the places in a call; they are unknown where like calls disagree."""
        if self.places.setdefault(key, found) != found:
            self.places[key] = (UNKNOWN,) * len(found)

    def _collect(self, name: str, contribution: Contribution) -> None:
        parts = self._collected.setdefault(name, [])
        parts.append(contribution)
        if len(parts) == self._expected[name]:
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        parts = self._collected.pop(name)
        if name not in self._unknown:
            self._on_contribution(name, join(parts, self._shapes[name]))


class _GradientTap(torch.autograd.Function):
    """Makes `output` require gradients, without a copy, and passes its gradient on; in-place functions may follow."""

    @staticmethod
    def forward(ctx, output, source, on_gradient):
        ctx.on_gradient = on_gradient
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx, dy):
        ctx.on_gradient(dy)
        return None, None, None


class _Spread(torch.autograd.Function):
    """`weight` expanded to `shape`, with a gradient of that shape that is passed on."""

    @staticmethod
    def forward(ctx, weight, source, shape, on_gradient):
        ctx.on_gradient = on_gradient
        return weight.detach().expand(shape)

    @staticmethod
    def backward(ctx, dy):
        ctx.on_gradient(dy)
        return None, None, None, None
