"""An LSTM layer that can be differentiated twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unlearnx.nn._replaced import FunctionsReplaced
from unlearnx.ops._stack import Call
from unlearnx.ops.lstm import lstm, packed_lstm


class LSTM(nn.LSTM):
    """``torch.nn.LSTM`` on :func:`unlearnx.ops.lstm`; arguments, parameters and inputs are the same.

    It can be differentiated twice on CPU and CUDA, in reverse and in forward mode and under ``torch.func`` transforms.

    Raises:
        ValueError: the layer has projections (``proj_size``), which are not supported.

    Example:
        >>> layer = LSTM(4, 8, batch_first=True)
        >>> output, (h, c) = layer(torch.randn(2, 5, 4))
        >>> (gradient,) = torch.autograd.grad(output.sum(), layer.weight_hh_l0, create_graph=True)
        >>> torch.autograd.grad(gradient.square().sum(), layer.weight_hh_l0)[0].shape
        torch.Size([32, 8])
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.proj_size:
            raise ValueError(f"proj_size is {self.proj_size}, expected 0: projections are not supported")

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        """As ``torch.nn.LSTM``: padded, packed or unbatched input."""
        with FunctionsReplaced({torch._VF.lstm: _lstm}):
            return super().forward(input, hx)


def _lstm(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.lstm``, for padded and for packed input."""
    return packed_lstm(*args) if Call.of(args).packed else lstm(*args)
