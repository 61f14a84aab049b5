"""What a model has made of its input at several depths, as features of each sample."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 512  # most features of a sample at one depth
MAX_DEPTHS = 6  # below the model's output; the input is one more
CHANNELS_FIRST = (nn.Conv1d, nn.BatchNorm1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.AvgPool1d)


class Depths:
    """Features of samples at up to seven depths of a model: its input, where that is real numbers, and the outputs of
    modules that each run once, evenly spaced, the model's own output left out.

    Images are averaged over a grid of regions and sequences over stretches, so that a sample has at most 512 features;
    of wider vectors random projections are taken. Samples may be in any dimension of an output, as in recurrent layers
    whose first one is time: it is the one that grows with the batch. A depth is given up where an output is not finite,
    or of a form that does not give each sample its features.
    """

    INPUT = "input"

    def __init__(self) -> None:
        self._forms: dict[str, _Form] | None = None  # of the depths that are chosen, in the model's order
        self._found: dict[str, list[Tensor | None]] = {}

    def choose(
        self, model: nn.Module, call: Callable[[Any], Tensor], few: tuple[Any, int], more: tuple[Any, int]
    ) -> None:
        """Choose the depths, where that has not been done.

        Args:
            model: the model, a lent one.
            call: returns the model's scores for a batch.
            few, more: two batches and their numbers of samples, which differ.
        """
        if self._forms is not None:
            return
        shapes: dict[str, list[torch.Size]] = defaultdict(list)
        with _watched(model, lambda name, _, t: shapes[name].append(t.shape)):
            call(few[0])
        told: dict[str, tuple[_Form, Tensor] | None] = {}

        def look(name: str, module: nn.Module, t: Tensor) -> None:
            first, told[name] = name not in told, None
            if first and len(shapes[name]) == 1:
                samples = _dimension_of_samples((shapes[name][0], few[1]), (t.shape, more[1]))
                form = None if samples is None else _Form.of(t, samples, isinstance(module, CHANNELS_FIRST))
                features = None if form is None else form(t)
                told[name] = None if form is None or features is None else (form, features)

        with _watched(model, look):
            output = call(more[0])
        forms = {name: pair[0] for name, pair in told.items() if pair is not None and not _same(pair[1], output)}
        step = max(1, -(-len(forms) // MAX_DEPTHS))
        chosen = set(list(forms)[::-1][::step])  # the deepest one is always among them
        self._forms = {name: form for name, form in forms.items() if name in chosen}
        if isinstance(more[0], Tensor) and more[0].is_floating_point():
            self._forms = {self.INPUT: _Form.of(more[0], 0, False), **self._forms}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While inside, calls of the model, a lent one, leave features for :meth:`take`."""
        assert self._forms is not None, "depths are chosen first"
        forms, self._found = self._forms, defaultdict(list)

        def keep(name: str, _: nn.Module, t: Tensor) -> None:
            if name in forms:
                self._found[name].append(forms[name](t))

        with _watched(model, keep):
            yield

    def take(self, x: Any, samples: int) -> dict[str, Tensor]:
        """Features (N, at most 512) by depth, in the model's order, of the call ``model(x)`` just made.

        A depth that does not give them for each of the samples is left out, now and in later calls.
        """
        assert self._forms is not None, "depths are chosen first"
        found = dict(self._found)
        self._found.clear()
        if self.INPUT in self._forms:
            found[self.INPUT] = [self._forms[self.INPUT](x)]
        features = {}
        for name in list(self._forms):
            outputs = found.get(name, [])
            if len(outputs) == 1 and outputs[0] is not None and len(outputs[0]) == samples:
                features[name] = outputs[0]
            else:
                del self._forms[name]
        return features


@dataclass(frozen=True)
class _Form:
    """How the features of samples are read off an output.

    Attributes:
        dimensions: how many the output has.
        samples: the one of the samples.
        channels_first: whether the channels of a sequence come before its positions.
        grid: regions of an image, or stretches of a sequence, that are averaged over; () of other outputs.
        size: of a sample, once averaged.
    """

    dimensions: int
    samples: int
    channels_first: bool
    grid: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, output: Tensor, samples: int, channels_first: bool) -> _Form:
        """That of outputs as this one."""
        t = _rows(output, samples, channels_first)
        grid: tuple[int, ...] = ()
        if t.dim() in (3, 4):
            positions = WIDTH // max(1, t.shape[1])
            most = max(1, positions if t.dim() == 3 else math.isqrt(positions))
            grid = tuple(min(most, length) for length in t.shape[2:])
        return cls(t.dim(), samples, channels_first, grid, math.prod((*t.shape[1:2], *(grid or t.shape[2:]))))

    def __call__(self, output: Tensor) -> Tensor | None:
        """Features (N, at most WIDTH); None where the output has another form, or is not finite."""
        if output.dim() != self.dimensions:
            return None
        t = _rows(output, self.samples, self.channels_first)
        if self.grid and t.shape[2:] != self.grid:
            pool: Callable[..., Tensor] = F.adaptive_avg_pool1d if len(self.grid) == 1 else F.adaptive_avg_pool2d
            t = pool(t, self.grid)
        flat = t.reshape(len(t), -1)
        if flat.shape[1] != self.size or not flat.isfinite().all():
            return None
        if self.size <= WIDTH:
            return flat
        generator = torch.Generator().manual_seed(self.size)
        projection = torch.randn(self.size, WIDTH, generator=generator) / self.size**0.5
        return flat @ projection.to(flat)


def _rows(output: Tensor, samples: int, channels_first: bool) -> Tensor:
    """The output (N, ...), a sequence as (N, channels, positions)."""
    t = output.detach().float().movedim(samples, 0)
    return t.transpose(1, 2) if t.dim() == 3 and not channels_first else t


def _dimension_of_samples(few: tuple[torch.Size, int], more: tuple[torch.Size, int]) -> int | None:
    """The first dimension that is the number of samples in both of two outputs, given with these numbers; or None."""
    (a, n), (b, m) = few, more
    if len(a) != len(b):
        return None
    return next((i for i, lengths in enumerate(zip(a, b, strict=True)) if lengths == (n, m)), None)


def _same(features: Tensor, output: Tensor) -> bool:
    """Whether these are the model's output."""
    if output.dim() == 0 or len(output) != len(features):
        return False
    rows = output if output.dim() > 1 else output[:, None]
    own = _Form.of(rows, 0, False)(rows)
    return own is not None and own.shape == features.shape and torch.allclose(own, features)


@contextmanager
def _watched(model: nn.Module, look: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """While inside, a function sees each output of a module of the model that is real numbers, with the module's name;
    of several tensors the first."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def see(module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, (tuple, list)) and output:
                output = output[0]
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 2:
                look(name, module, output)

        return see

    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
