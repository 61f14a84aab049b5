"""Models with layers that can be differentiated twice in place of those that cannot."""

from __future__ import annotations

import copy
from itertools import chain

from torch import nn

from unlearnx.nn.gru import GRU
from unlearnx.nn.lstm import LSTM

OURS: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.GRU: GRU}


def twice_differentiable(model: nn.Module) -> nn.Module:
    """`model` with ``nn.LSTM`` and ``nn.GRU`` replaced by :class:`LSTM` and :class:`GRU`, on the same parameters.

    The model that was given is left as it is; the result shares its parameters and buffers, so that training one
    trains the other, and state dicts fit both. Subclasses of the two layers stay what they are.

    Raises:
        ValueError: an LSTM has projections (``proj_size``), which are not covered.

    Example:
        >>> model = nn.GRU(4, 8)
        >>> twin = twice_differentiable(model)
        >>> isinstance(twin, GRU), twin.weight_hh_l0 is model.weight_hh_l0
        (True, True)
    """
    for name, module in model.named_modules():
        if type(module) is nn.LSTM and module.proj_size:
            raise ValueError(f"model: {name or 'it'} has proj_size={module.proj_size}, projections are not covered")
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    result = copy.deepcopy(model, shared)
    for module in result.modules():
        module.__class__ = OURS.get(type(module), type(module))
    return result
