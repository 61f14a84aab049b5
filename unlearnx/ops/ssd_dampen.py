"""Selective synaptic dampening of parameters, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearnx.ops._call import register_fake, tensor_list
from unlearnx.ops._writes import call_writing, writes

__all__ = ["ssd_dampen_"]


def ssd_dampen_(
    params: Sequence[Tensor],
    importance_full: Sequence[Tensor],
    importance_forget: Sequence[Tensor],
    alpha: float,
    lam: float,
    *,
    exponent: float = 1.0,
    bound: float = 1.0,
) -> Tensor:
    """Dampen, in place, the parameters that are more important to the forget set than to the whole training set.

    An entry with ``forget > alpha * full`` is multiplied by ``min((lam * full / forget) ** exponent, bound)``;
    all others keep their value, also those with a NaN importance. It takes one pass over memory. As in an optimizer
    step, autograd does not record the operation, but it raises an error if the old values are needed for a backward
    pass.

    Args:
        params: tensors to dampen, of any shapes.
        importance_full: importances over the training set, shaped like ``params``.
        importance_forget: importances over the forget set, shaped like ``params``.
        alpha: selection threshold, >= 0.
        lam: dampening constant, >= 0.
        exponent: power of the dampening factor, >= 0.
        bound: largest factor, >= 0; 1 keeps parameters from growing.

    Returns:
        How many entries were dampened, one count per tensor: int64 of shape ``(len(params),)``. Reading it is the
        only synchronisation.

    Raises:
        TypeError: a tensor is not float32, float64, float16 or bfloat16.
        ValueError: lengths, shapes or devices of the lists differ, or a number is negative or not finite.

    Source: Foster, Schoepf and Brintrup, "Fast Machine Unlearning Without Retraining Through Selective Synaptic
    Dampening", AAAI 2024, eqs. 3 and 4.

    Example:
        >>> weight, full, forget = torch.ones(3), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 20.0, 40.0])
        >>> ssd_dampen_([weight], [full], [forget], alpha=10.0, lam=1.0)
        tensor([2])
        >>> weight
        tensor([1.0000, 0.0500, 0.0250])
    """
    return call_writing(
        torch.ops.unlearnx.ssd_dampen_,
        tensor_list("ssd_dampen_", "params", params),
        tensor_list("ssd_dampen_", "importance_full", importance_full),
        tensor_list("ssd_dampen_", "importance_forget", importance_forget),
        alpha,
        lam,
        exponent=exponent,
        bound=bound,
    )


writes("ssd_dampen_")


@register_fake("ssd_dampen_")
def _(params, importance_full, importance_forget, alpha, lam, exponent=1.0, bound=1.0):
    return torch.empty(len(params), dtype=torch.int64, device=params[0].device if params else "cpu")
