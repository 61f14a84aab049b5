"""Zeroing, in place, the parameters that are most important to the forget set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearnx.ops._call import register_fake, tensor_list
from unlearnx.ops._writes import call_writing, writes

__all__ = ["fisher_mask_"]


def fisher_mask_(
    params: Sequence[Tensor],
    importance_forget: Sequence[Tensor],
    importance_retain: Sequence[Tensor],
    ratio: float,
) -> Tensor:
    """Zero, in place, the parameters that are most important to the forget set compared with the retain set.

    Among all n entries of the list, the ``int(ratio * n)`` with the largest score ``forget - retain`` become 0.
    Ties are broken by the order of the tensors, then by the index (row-major), so that the number of zeroed entries is
    exact. Entries with a NaN score are never zeroed; if too few others are left, fewer entries are zeroed. Scores are
    computed in float64 if a tensor of the three lists is float64, else in float32, and are not stored. Parameters that
    are not contiguous are copied and written back. As in an optimizer step, autograd does not record the operation,
    but it raises an error if the old values are needed for a backward pass.

    Args:
        params: tensors to mask, of any shapes.
        importance_forget: importances over the forget set, shaped like ``params``; they may not share memory with
            them.
        importance_retain: importances over the retain set, likewise.
        ratio: fraction of all entries to zero, from 0 to 1.

    Returns:
        How many entries were zeroed, one count per tensor: int64 of shape ``(len(params),)``. Reading it is the only
        synchronisation.

    Raises:
        TypeError: a tensor is not float32, float64, float16 or bfloat16.
        ValueError: lengths, shapes or devices of the lists differ, or the ratio is not from 0 to 1.

    Example:
        >>> weight, forget, retain = torch.ones(4), torch.tensor([5.0, 1.0, 3.0, 0.0]), torch.ones(4)
        >>> fisher_mask_([weight], [forget], [retain], ratio=0.5)
        tensor([2])
        >>> weight
        tensor([0., 1., 0., 1.])
    """
    return call_writing(
        torch.ops.unlearnx.fisher_mask_,
        tensor_list("fisher_mask_", "params", params),
        tensor_list("fisher_mask_", "importance_forget", importance_forget),
        tensor_list("fisher_mask_", "importance_retain", importance_retain),
        ratio,
    )


writes("fisher_mask_")


@register_fake("fisher_mask_")
def _(params, importance_forget, importance_retain, ratio):
    return torch.empty(len(params), dtype=torch.int64, device=params[0].device if params else "cpu")
