"""Changing a model's train and eval modes for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from unlearnx._copies import lent


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module of `model` its present mode back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model to call in eval mode, without gradients; see :func:`unlearnx._copies.lent`."""
    with torch.no_grad():
        twin = lent(model)
        with modes_kept(twin):
            yield twin.eval()
