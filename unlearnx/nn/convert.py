"""Replacing the recurrent layers of a model by layers that can be differentiated twice."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

from unlearnx._arguments import check_kind
from unlearnx.nn.gru import GRU
from unlearnx.nn.lstm import LSTM

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.GRU: GRU}


def twice_differentiable(model: nn.Module) -> nn.Module:
    """`model` with ``nn.LSTM`` and ``nn.GRU`` replaced by :class:`LSTM` and :class:`GRU`, on the same parameters.

    The given model is not changed. The result shares its parameters and buffers, so that training one trains the
    other, and it has the same state dict. Layers of subclasses of ``nn.LSTM`` and ``nn.GRU`` are not replaced.

    Raises:
        TypeError: the model is no module.
        ValueError: an LSTM has projections (``proj_size``), which are not supported.

    Example:
        >>> model = nn.GRU(4, 8)
        >>> converted = twice_differentiable(model)
        >>> isinstance(converted, GRU), converted.weight_hh_l0 is model.weight_hh_l0
        (True, True)
    """
    check_kind("model", model, "nn.Module", {})
    for name, module in model.named_modules():
        if type(module) is nn.LSTM and module.proj_size:
            layer = f"layer {name!r}" if name else "the LSTM"
            raise ValueError(
                f"model: {layer} has proj_size={module.proj_size}, expected 0: projections are not supported"
            )
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    result = copy.deepcopy(model, shared)
    for module in result.modules():
        module.__class__ = REPLACEMENTS.get(type(module), type(module))
    return result
