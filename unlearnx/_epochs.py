"""Epochs of a training as the samples of their steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def steps_of_epoch(samples: int, batch_size: int, model: nn.Module) -> list[Tensor]:
    """The indices of the samples of each step of an epoch, in random order, int64.

    A last step of one sample joins the one before where a BatchNorm of the model is trained, which cannot be on it.
    """
    steps = list(torch.randperm(samples).split(batch_size))
    if joins_last(samples, batch_size, model):
        steps[-2:] = [torch.cat(steps[-2:])]
    return steps


def joins_last(samples: int, batch_size: int, model: nn.Module) -> bool:
    """Whether an epoch has one step fewer than batches."""
    alone = samples % batch_size == 1 and samples > batch_size > 1
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return alone and any(module.training for module in norms)
