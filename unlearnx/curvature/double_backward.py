"""Runs a model in a form that is cheap to differentiate twice."""

from __future__ import annotations

from torch.overrides import TorchFunctionMode

from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.rules.registry import parsed


class TwiceDifferentiable(TorchFunctionMode):
    """Runs layers in a form that is cheap to differentiate twice: linear, convolution, frozen batch norm, LSTM, GRU.

    It replaces layers whose weights are leaves of the autograd graph. Other layers run torch's own functions, except
    LSTM and GRU, which always run ours, because cuDNN's have no second derivatives.
    """

    def __init__(self, derivatives: Derivatives):
        super().__init__()
        self._derivatives = derivatives

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        call = parsed(func, args, kwargs)
        result = NotImplemented if call is None else call.twice(self._derivatives)
        return func(*args, **kwargs) if result is NotImplemented else result
