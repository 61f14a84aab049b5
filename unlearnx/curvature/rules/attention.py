"""Multi-head attention expressed by linear layers, so that the tape watches its projections like any linear layer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.rules.registry import Recorder, Rule, rule_of

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


@rule_of(F.multi_head_attention_forward)
class Attention(Rule):
    """``F.multi_head_attention_forward`` for self-attention with packed projections, the usual case."""

    def __init__(self, *args: Any, **kwargs: Any):
        bound = _SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        self.arguments = bound.arguments

    def watched(self, tape: Recorder) -> Any:
        a = self.arguments
        query = a["query"]
        if (
            query is not a["key"]
            or query is not a["value"]
            or query.dim() != 3
            or a["use_separate_proj_weight"]
            or a["add_zero_attn"]
            or any(a[name] is not None for name in ("bias_k", "bias_v", "static_k", "static_v"))
            or (a["training"] and a["dropout_p"] > 0)
        ):
            return NotImplemented
        length, n, features = query.shape
        heads = a["num_heads"]
        # Modules with batch_first=True pass a transposed view. The product is faster on the contiguous original.
        transposed = query.transpose(0, 1).is_contiguous()
        with tape:
            packed = F.linear(query.transpose(0, 1) if transposed else query, a["in_proj_weight"], a["in_proj_bias"])
        packed = packed.transpose(0, 1) if transposed else packed
        # (length, n, features) each, as (n, heads, length, features / heads)
        q, k, v = (t.reshape(length, n, heads, -1).permute(1, 2, 0, 3) for t in packed.chunk(3, -1))
        mask = _mask(a["attn_mask"], a["key_padding_mask"], (n, heads), q.dtype)
        if a["need_weights"]:
            scores = q @ k.mT * (features // heads) ** -0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(1) if a["average_attn_weights"] else weights
        else:
            mixed, weights = F.scaled_dot_product_attention(q, k, v, mask), None
        mixed = mixed.permute(2, 0, 1, 3).reshape(length, n, features)
        with tape:
            return F.linear(mixed, a["out_proj_weight"], a["out_proj_bias"]), weights


def _mask(
    attention: Tensor | None, padding: Tensor | None, batch: tuple[int, int], dtype: torch.dtype
) -> Tensor | None:
    """Both masks as one to be added to the scores, broadcasting to (n, heads, length, length)."""

    def added(mask: Tensor) -> Tensor:
        zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return zeros.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask.to(dtype)

    total = None
    if attention is not None:
        total = added(attention)
        if total.dim() == 3:
            total = total.view(*batch, *total.shape[1:])
    if padding is not None:
        keys = added(padding)[:, None, None, :]
        total = keys if total is None else total + keys
    return total
