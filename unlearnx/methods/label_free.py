"""Importances that need no labels: how much the squared norm of the output depends on each parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unlearnx._batches import scores
from unlearnx._checks import model_device
from unlearnx._data import Data, batches, size
from unlearnx._per_sample import per_sample
from unlearnx._vectors import Vector
from unlearnx.curvature import per_sample_grad_difference
from unlearnx.methods.base import Work

MEMORY = 2**28  # bytes of gradients of single samples that are held at a time


def label_free_importance(work: Work, data: Data) -> Vector:
    """The mean over the samples of ``|d ||f(x)||^2 / d theta|``, for the chosen parameters.

    Unlike squares, absolute values of the gradients of single samples have no sum in closed form: the gradients are
    computed one by one, in small batches.

    Source: Foster, Schoepf and Brintrup, "Loss-Free Machine Unlearning", 2024 (LFSSD), after Aljundi et al., "Memory
    Aware Synapses", ECCV 2018. The code of the former takes the absolute value of a batch's mean gradient,
    which is the same for batches of one.
    """
    work.gradient_evaluations += size(data)
    own = dict(work.model.named_parameters())
    chosen = {name: own[name] for name in work.names}
    held = max(1, MEMORY // sum(p.nbytes for p in chosen.values()))
    total = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in chosen.items()}
    size_of_batch = min(work.pace.batch_size, held)
    for pair in batches(data, size_of_batch, model_device(work.model), title="importance without labels"):
        for name, g in per_sample_grad_difference(work.model, output_sqnorm, pair, params=work.names).items():
            total[name] += g.abs_().sum(0, dtype=total[name].dtype)
    return {name: t / size(data) for name, t in total.items()}


@per_sample
def output_sqnorm(output: Any, _: Any) -> Tensor:
    """Squared norm of each sample's scores, (N,)."""
    values = scores(output)
    return values.square().reshape(len(values), -1).sum(1)
