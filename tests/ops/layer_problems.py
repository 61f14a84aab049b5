"""Problems of the per-sample gradient families, each with its float64 reference: one sample at a time, by autograd."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx import ops


@dataclass
class Problem:
    """A family of ops with the sizes of one call."""

    family: str
    inputs: Callable[[], Tensor]  # a fresh x (N, ...)
    forward: Callable[..., Tensor]  # forward(x, *parameters): the layer in plain torch
    shapes: list[tuple[int, ...]]  # of the parameters
    positional: tuple[Any, ...] = ()  # arguments after (x, dy)
    settings: dict[str, Any] = field(default_factory=dict)

    def op(self, kind):
        return getattr(ops, f"{self.family}_grad_{kind}")

    def raw(self, kind):
        return getattr(torch.ops.unlearnx, f"{self.family}_grad_{kind}")

    def tensors(self, dtype=torch.float64, device="cpu", paired=True, weighted=True):
        """x, dy, x_new, dy_new, weight."""

        def pair():
            x = self.inputs()
            y = self.forward(x.double() if x.is_floating_point() else x, *self._zeros())
            x = x.to(dtype) if x.is_floating_point() else x
            return x.to(device), torch.randn_like(y).to(dtype).to(device)

        first, second = pair(), pair() if paired else (None, None)
        n = first[0].shape[0]
        return *first, *second, torch.rand(n, dtype=dtype, device=device) if weighted else None

    def _zeros(self):
        return [torch.zeros(s, dtype=torch.float64) for s in self.shapes]

    def _gradients(self, x, dy):
        parameters = [p.requires_grad_() for p in self._zeros()]
        rows = []
        for i in range(x.shape[0]):
            x_i = x[i : i + 1].cpu()
            y = self.forward(x_i.double() if x_i.is_floating_point() else x_i, *parameters)
            objective = (y * dy[i : i + 1].cpu().double()).sum()
            rows.append(torch.autograd.grad(objective, parameters, materialize_grads=True))
        shapes = [(0, *p.shape) for p in parameters]
        return [torch.stack(r) for r in zip(*rows, strict=True)] if rows else [torch.zeros(s).double() for s in shapes]

    def differences(self, x, dy, x_new=None, dy_new=None):
        """d_i of every parameter, (N, *shape) in float64 on the CPU."""
        old = self._gradients(x, dy)
        return old if x_new is None else [b - a for a, b in zip(old, self._gradients(x_new, dy_new), strict=True)]

    def arguments(self, x, dy, x_new, dy_new):
        return x, dy, *self.positional, x_new, dy_new


def linear(*leading, outputs, inputs):
    return Problem("linear", lambda: torch.randn(*leading, inputs), lambda x, w: F.linear(x, w), [(outputs, inputs)])


def conv2d(n, channels, size, outputs, kernel, channels_last=False, **settings):
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


def embedding(*leading, tokens, features, padding_idx=None):
    return Problem(
        "embedding",
        lambda: torch.randint(tokens, leading),
        lambda x, w: F.embedding(x, w, padding_idx=padding_idx),
        [(tokens, features)],
        positional=(tokens,),
        settings={} if padding_idx is None else dict(padding_idx=padding_idx),
    )


def affine(*shape, dim, statistics=False):
    channels = shape[dim]
    view = [1] * len(shape)
    view[dim] = channels
    mean, rstd = torch.linspace(-1, 1, channels).double(), torch.linspace(0.5, 2, channels).double()

    def forward(x, scale, shift):
        if statistics:
            x = (x - mean.view(view)) * rstd.view(view)
        return x * scale.view(view) + shift.view(view)

    settings = dict(dim=dim, mean=mean, rstd=rstd) if statistics else dict(dim=dim)
    return Problem("affine", lambda: torch.randn(shape), forward, [(channels,), (channels,)], settings=settings)


PROBLEMS = {
    "linear": linear(5, outputs=3, inputs=4),
    "linear, one value": linear(1, outputs=1, inputs=1),
    "linear, sequences": linear(7, 9, outputs=5, inputs=3),
    "linear, two axes": linear(4, 2, 3, outputs=6, inputs=33),
    "linear, long": linear(3, 300, outputs=13, inputs=17),
    "linear, wide": linear(3, 5, outputs=300, inputs=290),
    "linear, no samples": linear(0, outputs=3, inputs=2),
    "linear, no positions": linear(3, 0, outputs=2, inputs=2),
    "linear, no outputs": linear(2, 5, outputs=0, inputs=4),
    "conv 3x3": conv2d(5, 4, (7, 6), 6, 3, padding=1),
    "conv 3x3, channels last": conv2d(3, 20, (9, 9), 10, 3, channels_last=True, padding=1),
    "conv 3x3, many positions": conv2d(3, 3, (20, 21), 7, 3, padding=1),
    "conv 3x3, many columns": conv2d(2, 160, (3, 3), 5, 3, padding=1),
    "conv 1x1": conv2d(4, 9, (5, 5), 7, 1),
    "conv 1x1, strided": conv2d(4, 9, (5, 6), 7, 1, stride=2),
    "conv, strided and dilated": conv2d(3, 2, (11, 13), 5, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 1)),
    "conv, wide padding": conv2d(3, 2, (2, 3), 4, 3, padding=4, stride=2),
    "conv, groups": conv2d(3, 6, (5, 5), 9, 3, groups=3, padding=1),
    "conv, depthwise": conv2d(3, 5, (6, 6), 5, 3, groups=5, padding=1, dilation=2),
    "conv, no samples": conv2d(0, 2, (4, 4), 3, 3),
    "embedding": embedding(6, 9, tokens=4, features=5),
    "embedding, no positions axis": embedding(7, tokens=5, features=3),
    "embedding, padding": embedding(5, 3, 4, tokens=6, features=33, padding_idx=2),
    "embedding, no features": embedding(2, 3, tokens=4, features=0),
    "embedding, one sample": embedding(1, 3, tokens=4, features=2),
    "embedding, no samples": embedding(0, 3, tokens=4, features=2),
    "affine, last": affine(5, 7, 6, dim=-1),
    "affine, rows": affine(6, 4, dim=1),
    "affine, images": affine(4, 70, 5, 6, dim=1),
    "affine, statistics": affine(4, 3, 9, 7, dim=1, statistics=True),
    "affine, middle": affine(3, 4, 5, 6, dim=2, statistics=True),
    "affine, long": affine(2, 130, 70, dim=-1),
    "affine, no samples": affine(0, 3, 2, dim=1),
}
