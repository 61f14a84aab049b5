"""A forward pass that records, for every parameter, what its per-sample gradients are computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unlearnx.curvature.contributions import Contribution, join
from unlearnx.curvature.rules.registry import Parts, parsed


class Tape(TorchFunctionMode):
    """Watches the functions that a model calls on its parameters, in any module and any number of times.

    Run the model inside of ``with tape:``, with `parameters` that do not require gradients. Then, once or more,
    differentiate the losses with respect to ``tape.sources`` and call :meth:`finish`. During the backward pass each
    parameter's contribution goes to `on_contribution` as soon as all uses of the parameter have their gradients, so
    that the output gradients of one layer at a time are in memory. Weight gradients of the batch are never computed.

    Args:
        parameters: the parameters to watch, by name.
        on_contribution: called with the name and the contribution of a parameter.
        samples: number of samples N in the batch.
        axes: the :attr:`axes` that a first pass over a few samples found; None for that first pass.
        on_scale: called for every use with the contribution of the absolute values of the output gradients, which tells
            what is rounding in a sum that cancels.

    Attributes:
        sources: the tensors that require gradients, added to the watched outputs so that a backward pass reaches them.
        axes: for each set of parameters that a call uses, the sample dimension of the call's input; None where calls
            disagree or no dimension has size N.
        seen: the parameters that functions were called with.
        ambiguous: parameters used in calls whose input has several dimensions of size N.
        bytes: memory of the outputs of watched calls.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        on_contribution: Callable[[str, Contribution], None],
        samples: int,
        axes: dict[frozenset[str], int | None] | None = None,
        on_scale: Callable[[str, Contribution], None] | None = None,
    ):
        super().__init__()
        self.sources: list[Tensor] = []
        self.axes: dict[frozenset[str], int | None] = {}
        self.seen: set[str] = set()
        self.ambiguous: set[str] = set()
        self.bytes = 0
        self._names = {id(p): name for name, p in parameters.items()}
        self._on_contribution, self._on_scale = on_contribution, on_scale
        self.samples, self._known_axes = samples, axes
        self._expected: Counter[str] = Counter()
        self._collected: dict[str, list[Contribution]] = {}
        self._unknown: set[str] = set()
        self._used: frozenset[str] = frozenset()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        used = frozenset(self._names[id(a)] for a in _tensors((*args, *kwargs.values())) if id(a) in self._names)
        if not used:
            return func(*args, **kwargs)
        call = parsed(func, args, kwargs)
        if call is not None:
            self._used = used
            result = call.watched(self)
            if result is not NotImplemented:
                self.seen |= used
                return result
        result = func(*args, **kwargs)
        if next(_tensors((result,)), None) is not None:  # a result without tensors is a query, of a shape for example
            self.seen |= used
            self._unknown |= used
        return result

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

    def expect(self, parameters: Iterable[Tensor | None], contributions: Callable[..., Parts]) -> Callable[..., None]:
        """A function that the backward pass must call with the output gradients of one use of `parameters`."""
        names = [self._names[id(p)] for p in parameters if p is not None and id(p) in self._names]
        self._expected.update(names)

        def named(*dy: Tensor) -> Iterator[tuple[str, Contribution]]:
            for parameter, contribution in contributions(*dy):
                if parameter is not None and id(parameter) in self._names:
                    yield self._names[id(parameter)], contribution

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

    def sample_axis(self, x: Tensor) -> int | None:
        """The sample dimension of the input x of the current call; None where it is unknown."""
        if self._known_axes is None:
            sizes = list(x.shape)
            axis = sizes.index(self.samples) if self.samples in sizes else None
            self.axes[self._used] = axis if self.axes.get(self._used, axis) == axis else None
            if sizes.count(self.samples) > 1:
                self.ambiguous |= self._used
        axis = (self.axes if self._known_axes is None else self._known_axes).get(self._used)
        return axis if axis is not None and x.dim() > axis and x.shape[axis] == self.samples else None

    def _collect(self, name: str, contribution: Contribution) -> None:
        parts = self._collected.setdefault(name, [])
        parts.append(contribution)
        if len(parts) == self._expected[name]:
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        joined = join(self._collected.pop(name))
        if joined is None:
            self._unknown.add(name)
        elif name not in self._unknown:
            self._on_contribution(name, joined)

    def finish(self) -> set[str]:
        """End a backward pass.

        Returns:
            The parameters that are done: their contributions were delivered, or they do not influence the losses. The
            other parameters were used in functions without a rule.
        """
        for name in list(self._collected):  # their missing uses got no gradients: the losses do not depend on them
            self._deliver(name)
        return set(self._expected) - self._unknown


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


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
