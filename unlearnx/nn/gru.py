"""A GRU in plain torch operations, which can be differentiated any number of times; cuDNN's cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx.nn._replaced import FunctionsReplaced
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._stack import Call, Stack


class GRU(nn.GRU):
    """``torch.nn.GRU`` that can be differentiated twice; arguments, parameters and inputs are the same.

    Example:
        >>> layer = GRU(4, 8, batch_first=True)
        >>> output, h = layer(torch.randn(2, 5, 4))
        >>> output.shape, h.shape
        (torch.Size([2, 5, 8]), torch.Size([1, 2, 8]))
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        """As ``torch.nn.GRU``."""
        with FunctionsReplaced({torch._VF.gru: _gru}):
            return super().forward(input, hx)


class GRUStack(Stack):
    """A stack of GRU layers.

    Attributes:
        project: computes the product with ``weight_ih``; called like ``F.linear``, and may be replaced.
    """

    kind, gates, states = "gru", 3, 1
    project = staticmethod(F.linear)

    def _direction(self, x, first, weights):
        w_ih, w_hh, b_ih, b_hh = self.named(weights)
        projected = self.project(x, w_ih, b_ih)
        dtype = compute_dtype(projected)
        weight, bias = w_hh.to(dtype), None if b_hh is None else b_hh.to(dtype)
        (h,) = first
        states = [x.new_zeros(x.shape[1], w_hh.shape[1], dtype=dtype) if h is None else h.to(dtype)]
        for step in projected.to(dtype):
            (r, z, new), (r_h, z_h, new_h) = step.chunk(3, 1), F.linear(states[-1], weight, bias).chunk(3, 1)
            states.append(torch.lerp((new + (r + r_h).sigmoid() * new_h).tanh(), states[-1], (z + z_h).sigmoid()))
        return [torch.stack(states)]


def _gru(*args: Any) -> tuple[Tensor, ...]:
    """``torch.gru``, for padded and for packed input."""
    call = Call.of(args)
    return call.run(GRUStack(call.weights, *call.settings))
