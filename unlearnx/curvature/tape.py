"""One forward pass that remembers, for every parameter, what its per-sample gradients are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unlearnx.curvature.contributions import Contribution, join
from unlearnx.curvature.rules import RULES, Parts


class Tape(TorchFunctionMode):
    """Watches the functions that a model calls on its parameters, on whatever module and however often.

    Run the model inside of ``with tape:``, with `parameters` that do not require gradients, then differentiate the
    losses with respect to ``tape.sources`` and call :meth:`finish`, once or several times. A parameter's contribution
    is handed to `take` as soon as all its parts are there, so that a pass holds the output gradients of one layer at
    a time. The weight gradients of the batch are never computed.

    Args:
        parameters: those to watch, by name.
        take: called with the name and the contribution of a parameter.
        samples: number of samples N in the batch.
        axes: where a first pass over few samples found the samples, see :attr:`axes`; None for that first pass.

    Attributes:
        sources: tensors that require gradients, where nothing else does.
        axes: the dimension of the samples in what is computed from some parameters; None where there is no telling.
        ambiguous: parameters whose calls had several dimensions of the size of the samples.
        bytes: size of the outputs of watched calls.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        take: Callable[[str, Contribution], None],
        samples: int,
        axes: dict[frozenset[str], int | None] | None = None,
    ):
        super().__init__()
        self.sources: list[Tensor] = []
        self.axes: dict[frozenset[str], int | None] = {}
        self.ambiguous: set[str] = set()
        self.bytes = 0
        self._names = {id(p): name for name, p in parameters.items()}
        self._take, self.samples, self._known_axes = take, samples, axes
        self._expected: Counter[str] = Counter()
        self._arrived: dict[str, list[Contribution]] = {}
        self._unknown: set[str] = set()
        self._used: frozenset[str] = frozenset()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        used = frozenset(self._names[id(a)] for a in _tensors((*args, *kwargs.values())) if id(a) in self._names)
        if not used:
            return func(*args, **kwargs)
        if func in RULES:
            self._used = used
            result = RULES[func](self, *args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if next(_tensors((result,)), None) is not None:  # anything else asks for a shape, a dtype, ...
            self._unknown |= used
        return result

    def watch(self, output: Tensor, parameters: Iterable[Tensor | None], contributions: Callable[[Tensor], Parts]):
        """`output` as it is to be used from here on; its gradient dy is turned into contributions once it is known."""
        arrived = self.expect(parameters, contributions)
        self.bytes += output.numel() * output.element_size()
        if output.requires_grad:
            output.register_hook(arrived)
            return output
        if output._is_view():
            output = output.clone()
        return _Tap.apply(output, self.source(output), arrived)

    def expect(self, parameters: Iterable[Tensor | None], contributions: Callable[..., Parts]) -> Callable[..., None]:
        """A function to be called with output gradients during the backward pass."""
        names = [self._names[id(p)] for p in parameters if p is not None and id(p) in self._names]
        self._expected.update(names)

        def arrived(*dy: Tensor) -> None:
            for parameter, contribution in contributions(*(g.detach() for g in dy)):
                if parameter is not None and id(parameter) in self._names:
                    self._arrive(self._names[id(parameter)], contribution)

        return arrived

    def source(self, like: Tensor) -> Tensor:
        """Something that requires gradients, where nothing else does."""
        self.sources.append(torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True))
        return self.sources[-1]

    def sample_axis(self, x: Tensor) -> int | None:
        """The dimension of the samples in the input of the current call; None where there is no telling."""
        if self._known_axes is None:
            sizes = list(x.shape)
            axis = sizes.index(self.samples) if self.samples in sizes else None
            self.axes[self._used] = axis if self.axes.get(self._used, axis) == axis else None
            if sizes.count(self.samples) > 1:
                self.ambiguous |= self._used
        axis = (self.axes if self._known_axes is None else self._known_axes).get(self._used)
        return axis if axis is not None and x.dim() > axis and x.shape[axis] == self.samples else None

    def _arrive(self, name: str, contribution: Contribution) -> None:
        parts = self._arrived.setdefault(name, [])
        parts.append(contribution)
        if len(parts) == self._expected[name]:
            self._hand_over(name)

    def _hand_over(self, name: str) -> None:
        joined = join(self._arrived.pop(name))
        if joined is None:
            self._unknown.add(name)
        elif name not in self._unknown:
            self._take(name, joined)

    def finish(self) -> set[str]:
        """Ends a backward pass.

        Returns:
            The parameters that are settled: handed over, or of no influence on the losses. The others were used in
            ways that are not known.
        """
        for name in list(self._arrived):  # the losses do not depend on the uses that are missing
            self._hand_over(name)
        return set(self._expected) - self._unknown


class _Tap(torch.autograd.Function):
    """Makes `output` require gradients without a copy; in-place functions may follow."""

    @staticmethod
    def forward(ctx, output, source, arrived):
        ctx.arrived = arrived
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx, dy):
        ctx.arrived(dy)
        return None, None, None


def _tensors(values: Iterable[Any]):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
