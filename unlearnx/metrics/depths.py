"""What a model has made of its input at several depths, as features of each sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    of wider vectors random projections are taken.

    """

    INPUT = "input"

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._calls: list[str] = []
        self._chosen: frozenset[str] | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While inside, calls of the model, a lent one, leave features for :meth:`take`."""
        handles = [m.register_forward_hook(self._hook(name, m)) for name, m in model.named_modules() if name]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self, x: Any, output: Tensor) -> dict[str, Tensor]:
        """Features (N, at most 512) by depth, in the model's order, of the call ``output = model(x)`` just made.

        The first call chooses the depths; the later ones are at the same.
        """
        found, calls, self._found, self._calls = self._found, self._calls, {}, []
        if self._chosen is None:
            names = [n for n, t in found.items() if calls.count(n) == 1 and not _same(t, output, len(output))]
            step = max(1, -(-len(names) // MAX_DEPTHS))
            self._chosen = frozenset(names[::-1][::step])  # the deepest one is always among them
        features = {name: t for name, t in found.items() if name in self._chosen}
        if isinstance(x, Tensor) and x.is_floating_point():
            features = {self.INPUT: _pooled(x.float(), False), **features}
        return features

    def _hook(self, name: str, module: nn.Module) -> Any:
        def keep(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, (tuple, list)) and output:
                output = output[0]
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() >= 2:
                self._calls.append(name)
                if self._chosen is None or name in self._chosen:
                    self._found[name] = _pooled(output.detach().float(), isinstance(module, CHANNELS_FIRST))

        return keep


def _same(features: Tensor, output: Tensor, samples: int) -> bool:
    """Whether these are the model's output, or no features of samples."""
    if len(features) != samples:
        return True
    pooled = _pooled(output.detach().float(), False) if output.dim() >= 2 else output.detach().float()[:, None]
    return pooled.shape == features.shape and torch.allclose(pooled, features)


def _pooled(t: Tensor, channels_first: bool) -> Tensor:
    """(N, at most WIDTH) features of an output (N, ...)."""
    n = len(t)
    if t.dim() == 4:
        side = max(1, int((WIDTH / t.shape[1]) ** 0.5))
        if side < max(t.shape[2:]):
            t = F.adaptive_avg_pool2d(t, (min(side, t.shape[2]), min(side, t.shape[3])))
    elif t.dim() == 3:
        t = t if channels_first else t.transpose(1, 2)
        t = F.adaptive_avg_pool1d(t, min(max(1, WIDTH // t.shape[1]), t.shape[2]))
    flat = t.reshape(n, -1)
    if flat.shape[1] <= WIDTH:
        return flat
    generator = torch.Generator().manual_seed(flat.shape[1])
    projection = torch.randn(flat.shape[1], WIDTH, generator=generator) / flat.shape[1] ** 0.5
    return flat @ projection.to(flat)
