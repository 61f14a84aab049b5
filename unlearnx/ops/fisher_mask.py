"""Zeroing of the parameters that matter most to the forget set, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearnx.ops._call import call, register_fake, tensor_list

__all__ = ["fisher_mask_"]


def fisher_mask_(
    params: Sequence[Tensor],
    importance_forget: Sequence[Tensor],
    importance_retain: Sequence[Tensor],
    ratio: float,
) -> Tensor:
    """Zero, in place, the parameters that matter most to the forget set compared with the retained data.

    Among all n entries of the list, the ``int(ratio * n)`` with the largest score ``forget - retain`` become 0.
    Equal scores are taken from the earlier tensor, then from the lower index (row-major), so that the number is
    exact; NaN scores are never taken, which leaves fewer only where there are not enough others. Scores are
    computed in float64 where a tensor of the three lists is float64, else in float32, and never stored. Parameters
    that are not contiguous are worked on in copies. Autograd records nothing, as in an optimizer step, but notices
    that the parameters changed.

    Args:
        params: tensors to mask, of any shapes.
        importance_forget: importances over the forget set, shaped like ``params``; they may not share memory with
            them.
        importance_retain: importances over the retained data, likewise.
        ratio: share of all entries that is zeroed, from 0 to 1.

    Returns:
        How many entries were zeroed, one count a tensor: int64 of shape ``(len(params),)``. Reading it is the only
        synchronisation.

    Raises:
        TypeError: a tensor is not float32, float64, float16 or bfloat16.
        ValueError: the lists do not pair up (length, shape, device), or the ratio is not from 0 to 1.

    Example:
        >>> weight, forget, retain = torch.ones(4), torch.tensor([5.0, 1.0, 3.0, 0.0]), torch.ones(4)
        >>> fisher_mask_([weight], [forget], [retain], ratio=0.5)
        tensor([2])
        >>> weight
        tensor([0., 1., 0., 1.])
    """
    return call(
        torch.ops.unlearnx.fisher_mask_,
        tensor_list("fisher_mask_", "params", params),
        tensor_list("fisher_mask_", "importance_forget", importance_forget),
        tensor_list("fisher_mask_", "importance_retain", importance_retain),
        ratio,
    )


@register_fake("fisher_mask_")
def _(params, importance_forget, importance_retain, ratio):
    return torch.empty(len(params), dtype=torch.int64, device=params[0].device if params else "cpu")
