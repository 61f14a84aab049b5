"""Per-sample gradients of any parameter by autograd: many samples at once by vmap, or one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from unlearnx._batches import Nest, Rebuild, arguments, count, split_rows, take
from unlearnx._functional import functional_call
from unlearnx._losses import SampleLoss
from unlearnx._precision import autocast
from unlearnx.curvature.targets import Targets
from unlearnx.ops._dtypes import compute_dtype

VMAP_SAMPLES = 16  # samples in one vmap: few enough that their gradients stay in the CPU's caches
TRIED_ALONE = 2  # samples that run alone before vmap is tried; the last of them is timed
TRIED_AT_ONCE = 4


class SingleSamples:
    """Every sample's own gradients, by whichever is faster: ``vmap(grad)`` of several samples, or a loop.

    A loop is, on a CPU, where samples are large or torch has no batching rule for a function that the model calls. The
    first samples are timed.

    Args:
        model: the model to call.
        loss: per-sample losses.
        device: the model's device.
        dtype: of autocast, or None for none.
        use_vmap: whether to; None to find out.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: SampleLoss,
        device: torch.device,
        dtype: torch.dtype | None,
        use_vmap: bool | None = None,
    ):
        self.model, self.loss, self.device, self.dtype = model, loss, device, dtype
        self._use_vmap = True if use_vmap is None and device.type != "cpu" else use_vmap
        self._alone: list[float] = []  # seconds of the samples that ran alone

    def __call__(
        self, values: dict[str, Tensor], rest: dict[str, Tensor], x: Nest, targets: Targets
    ) -> Iterator[tuple[dict[str, Tensor], Tensor | None]]:
        """Gradients with respect to `values`, (samples, *shape), of consecutive samples, with their weights.

        Args:
            values: the parameters.
            rest: all other parameters and buffers.
            x: a batch.
            targets: what to differentiate.
        """
        n, start = count(x), 0
        while start < n:
            s = slice(start, min(n, start + self._next()))
            part = targets.part(s)
            samples = (take(x, s), part.y) if part.minus is None else (take(x, s), part.y, part.minus)
            flat, sample_of = split_rows(samples, s.stop - s.start)

            def objective(values: dict[str, Tensor], *flat: Tensor, sample_of: Rebuild = sample_of) -> Tensor:
                x, *labels = sample_of([t.unsqueeze(0) for t in flat])
                output = functional_call(self.model, (values, rest), *arguments(x))
                return Targets(*labels).objective(self.loss, output)

            gradients = self._gradients(objective, values, flat, s.stop - s.start)
            yield {name: row.detach().to(compute_dtype(row)) for name, row in gradients.items()}, part.weight
            start = s.stop

    def _next(self) -> int:
        """How many samples are next."""
        if self._use_vmap is None:
            return 1 if len(self._alone) < TRIED_ALONE else TRIED_AT_ONCE
        return VMAP_SAMPLES if self._use_vmap else 1

    def _gradients(
        self, objective: Callable[..., Tensor], values: dict[str, Tensor], samples: list[Tensor], n: int
    ) -> dict[str, Tensor]:
        start = perf_counter()
        if n == 1 and self._use_vmap is not True:
            gradients = self._one(objective, values, *(t[0] for t in samples))
            if self._use_vmap is None:
                self._alone.append(perf_counter() - start)
            return {name: g.unsqueeze(0) for name, g in gradients.items()}
        try:
            with autocast(self.device, self.dtype), _quiet():
                gradients = vmap(grad(objective), in_dims=(None, *[0] * len(samples)))(values, *samples)
            if self._use_vmap is None:
                self._use_vmap = (perf_counter() - start) / n < self._alone[-1]
            return gradients
        except (RuntimeError, ValueError):  # data-dependent control flow, or a function without a batching rule
            self._use_vmap = False
        each = [self._one(objective, values, *sample) for sample in zip(*samples, strict=True)]
        return {name: torch.stack([row[name] for row in each]) for name in values}

    def _one(self, objective: Callable[..., Tensor], values: dict[str, Tensor], *sample: Tensor) -> dict[str, Tensor]:
        """Gradients of ``objective(values, *sample)`` by one ordinary backward pass."""
        leaves = {name: v.detach().requires_grad_() for name, v in values.items()}
        with torch.enable_grad(), autocast(self.device, self.dtype):
            value = objective(leaves, *sample)
        if not value.requires_grad:
            return {name: torch.zeros_like(v) for name, v in values.items()}
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """torch does not warn of every function that vmap has to call for one sample after the other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop because")
        yield
