"""Test problems for the per-sample gradient ops, with a reference: autograd on one sample at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx import ops

GRADIENT_KINDS = ("diff", "sq", "sqnorm", "dot")


@dataclass
class Problem:
    """A family of ops, and the sizes and settings of one call.

    Attributes:
        family: ``"linear"`` for the ops ``linear_grad_*``, and so on.
        inputs: draws random inputs x (N, ...).
        forward: ``forward(x, *parameters)``, the layer in plain torch.
        shapes: shapes of the parameters.
        positional: positional arguments of the ops after x and dy.
        settings: keyword arguments of the ops.
    """

    family: str
    inputs: Callable[[], Tensor]
    forward: Callable[..., Tensor]
    shapes: list[tuple[int, ...]]
    positional: tuple[Any, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def op(self, kind: str) -> Callable[..., Any]:
        """The public function."""
        return getattr(ops, f"{self.family}_grad_{kind}")

    def tensors(
        self,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        paired: bool = True,
        weighted: bool = True,
    ) -> tuple[Any, ...]:
        """Random x, dy, x_new, dy_new and weight, drawn on the CPU.

        Without `paired`, x_new and dy_new are None; without `weighted`, weight is None.
        """

        def pair():
            x = self.inputs()
            y = self.forward(x.double() if x.is_floating_point() else x, *self._zeros())
            x = x.to(dtype) if x.is_floating_point() else x
            return x.to(device), torch.randn_like(y).to(dtype).to(device)

        first, second = pair(), pair() if paired else (None, None)
        return *first, *second, torch.rand(len(first[0]), dtype=dtype).to(device) if weighted else None

    def arguments(self, x: Tensor, dy: Tensor, x_new: Tensor | None, dy_new: Tensor | None) -> tuple[Any, ...]:
        """Positional arguments of the ops."""
        return x, dy, *self.positional, x_new, dy_new

    def results(self, kind: str, tensors: tuple[Any, ...], reduction: str = "sum") -> tuple[list[Tensor], list[Tensor]]:
        """The op's results, one tensor per parameter; and the expected ones, computed in float64 on the CPU.

        Args:
            kind: one of GRADIENT_KINDS.
            tensors: x, dy, x_new, dy_new, weight, as from :meth:`tensors`.
            reduction: argument of ``diff``; not used for other kinds.
        """
        *pairs, weight = tensors
        settings = {k: v.to(pairs[1].device) if torch.is_tensor(v) else v for k, v in self.settings.items()}
        d = self._differences(*pairs)
        directions = [torch.linspace(-1, 1, math.prod(shape)).reshape(shape).to(pairs[1]) for shape in self.shapes]
        if kind in ("diff", "sq"):
            settings["weight"] = weight
            w = torch.ones(len(d[0])) if weight is None else weight.cpu()
            d = [r * w.double().view(-1, *[1] * (r.dim() - 1)) * (r if kind == "sq" else 1) for r in d]
        if kind == "diff":
            settings["reduction"] = reduction
        if kind == "dot":
            names = ["v"] if len(d) == 1 else ["v_scale", "v_shift"]
            settings.update(zip(names, directions, strict=True))
        got = self.op(kind)(*self.arguments(*pairs), **settings)
        if kind == "sqnorm":
            expected = [r.square().flatten(1).sum(1) for r in d]
        elif kind == "dot":
            expected = [(r * v.cpu().double()).flatten(1).sum(1) for r, v in zip(d, directions, strict=True)]
        else:
            expected = d if reduction == "none" else [r.sum(0) for r in d]
        return list(got) if isinstance(got, tuple) else [got], expected

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros(s, dtype=torch.float64) for s in self.shapes]

    def _gradients(self, x: Tensor, dy: Tensor) -> list[Tensor]:
        parameters = [p.requires_grad_() for p in self._zeros()]
        gradients = []
        for i in range(x.shape[0]):
            x_i = x[i : i + 1].cpu()
            y = self.forward(x_i.double() if x_i.is_floating_point() else x_i, *parameters)
            objective = (y * dy[i : i + 1].cpu().double()).sum()
            gradients.append(torch.autograd.grad(objective, parameters, materialize_grads=True))
        if not gradients:
            return [torch.zeros(0, *p.shape).double() for p in parameters]
        return [torch.stack(of_parameter) for of_parameter in zip(*gradients, strict=True)]

    def _differences(self, x: Tensor, dy: Tensor, x_new: Tensor | None, dy_new: Tensor | None) -> list[Tensor]:
        """d_i of every parameter, (N, *shape) in float64 on the CPU."""
        old = self._gradients(x, dy)
        if x_new is None or dy_new is None:
            return old
        return [b - a for a, b in zip(old, self._gradients(x_new, dy_new), strict=True)]


def linear(*leading: int, outputs: int, inputs: int) -> Problem:
    """A linear layer on (\\*leading, inputs)."""
    return Problem("linear", lambda: torch.randn(*leading, inputs), lambda x, w: F.linear(x, w), [(outputs, inputs)])


def conv2d(
    n: int,
    channels: int,
    size: tuple[int, int],
    outputs: int,
    kernel: int | tuple[int, int],
    channels_last: bool = False,
    **settings: Any,
) -> Problem:
    """A convolution of n images (channels, \\*size)."""
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Problem(
        "conv2d",
        lambda: torch.randn(n, channels, *size).contiguous(memory_format=layout),
        lambda x, w: F.conv2d(x, w, **settings),
        [(outputs, channels // settings.get("groups", 1), *kernel)],
        positional=(kernel,),
        settings=settings,
    )


def embedding(*leading: int, tokens: int, features: int, padding_idx: int | None = None) -> Problem:
    """An embedding of tokens of shape `leading`."""
    return Problem(
        "embedding",
        lambda: torch.randint(tokens, leading),
        lambda x, w: F.embedding(x, w, padding_idx=padding_idx),
        [(tokens, features)],
        positional=(tokens,),
        settings={} if padding_idx is None else {"padding_idx": padding_idx},
    )


def scale_shift(*shape: int, dim: int, statistics: bool = False) -> Problem:
    """The scale and shift of a normalisation layer with channels in `dim`, with or without frozen statistics."""
    channels = shape[dim]
    view = [1] * len(shape)
    view[dim] = channels
    mean, rstd = torch.linspace(-1, 1, channels).double(), torch.linspace(0.5, 2, channels).double()

    def forward(x, scale, shift):
        if statistics:
            x = (x - mean.view(view)) * rstd.view(view)
        return x * scale.view(view) + shift.view(view)

    settings = {"dim": dim, "mean": mean, "rstd": rstd} if statistics else {"dim": dim}
    return Problem("scale_shift", lambda: torch.randn(shape), forward, [(channels,), (channels,)], settings=settings)
