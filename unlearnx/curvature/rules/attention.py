"""Multi-head attention expressed by linear layers, so that the tape watches its projections like any linear layer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.linearised import Linearised, torch_gradients
from unlearnx.curvature.places import Place
from unlearnx.curvature.rules.linear import linear_of
from unlearnx.curvature.rules.registry import Recorder, Rule, rule_of

# Where no graph is recorded for second derivatives, which the math implementation alone has.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


@rule_of(F.multi_head_attention_forward)
class Attention(Rule):
    """``F.multi_head_attention_forward``, on itself or on another sequence, with packed or separate projections."""

    def __init__(self, *args: Any, **kwargs: Any):
        bound = _SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        self.arguments = bound.arguments

    def watched(self, tape: Recorder) -> Any:
        a = self.arguments
        query, key, value = a["query"], a["key"], a["value"]
        if (
            any(t.dim() != 3 or tape.place(t) != Place(1) for t in (query, key, value))
            or a["add_zero_attn"]
            or any(a[name] is not None for name in ("bias_k", "bias_v", "static_k", "static_v"))
            or (a["training"] and a["dropout_p"] > 0)
        ):
            return NotImplemented
        length, n, features = query.shape
        heads = a["num_heads"]
        # (length, n, features) each, as (n, heads, length, features / heads)
        q, k, v = (t.reshape(len(t), n, heads, -1).permute(1, 2, 0, 3) for t in self._projected(tape))
        mask = _mask(a["attn_mask"], a["key_padding_mask"], (n, heads), q.dtype)
        if a["need_weights"]:
            scores = q @ k.mT * q.shape[-1] ** -0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(1) if a["average_attn_weights"] else weights
        else:
            mixed, weights = F.scaled_dot_product_attention(q, k, v, mask), None
        mixed = mixed.permute(2, 0, 1, 3).reshape(length, n, features)
        return linear_of(tape, mixed, 1, a["out_proj_weight"], a["out_proj_bias"]), weights

    def _projected(self, tape: Recorder) -> Sequence[Tensor]:
        """Queries, keys and values. Inputs that are the same go through their projections at once."""
        a = self.arguments
        query, key, value = a["query"], a["key"], a["value"]
        weight, bias, width = a["in_proj_weight"], a["in_proj_bias"], query.shape[-1]
        if query is key and key is value and not a["use_separate_proj_weight"]:
            return _linear(tape, query, weight, bias).chunk(3, -1)
        biases = (None,) * 3 if bias is None else tape.made(torch.chunk, bias, 3)
        if a["use_separate_proj_weight"]:
            each = [a[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
        elif key is value:
            rows = [width, 2 * width]
            own, other = tape.made(torch.split, weight, rows)
            of_own, of_other = (None, None) if bias is None else tape.made(torch.split, bias, rows)
            return _linear(tape, query, own, of_own), *_linear(tape, key, other, of_other).chunk(2, -1)
        else:
            each = tape.made(torch.chunk, weight, 3)
        return [_linear(tape, x, w, b) for x, w, b in zip((query, key, value), each, biases, strict=True)]


def _linear(tape: Recorder, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product with (length, n, features), in the order of memory that it has."""
    # Modules with batch_first=True pass a transposed view. The product is faster on the contiguous original.
    if x.transpose(0, 1).is_contiguous():
        return linear_of(tape, x.transpose(0, 1), 0, weight, bias).transpose(0, 1)
    return linear_of(tape, x, 1, weight, bias)


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


@rule_of(F.scaled_dot_product_attention)
@dataclass
class DotProductAttention(Rule):
    """``F.scaled_dot_product_attention``."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def twice(self, derivatives: Derivatives) -> Any:
        inputs, mask = (self.query, self.key, self.value), self.attn_mask
        if self.dropout_p > 0 or (mask is not None and mask.requires_grad):
            return NotImplemented
        if any(t.dim() < 3 for t in inputs) or not all(t.requires_grad for t in inputs):
            return NotImplemented
        if mask is not None and mask.dtype not in (torch.bool, self.query.dtype):
            return NotImplemented
        groups = self.query.shape[-3] // self.key.shape[-3] if self.enable_gqa else 1
        return derivatives.linearised(_Mixed(mask, self.is_causal, self.scale, groups), *inputs)


@dataclass
class _Mixed(Linearised):
    """Values mixed by attention. Its weights, which grow with the square of the length, are not kept."""

    mask: Tensor | None
    is_causal: bool
    scale: float | None
    groups: int  # heads of queries to one of keys and values

    def value(self, query, key, value):
        with nullcontext() if torch.is_grad_enabled() else sdpa_kernel(BACKENDS):
            return F.scaled_dot_product_attention(
                query, key, value, self.mask, is_causal=self.is_causal, scale=self.scale, enable_gqa=self.groups > 1
            )

    def gradients(self, dy, xs, needed):
        with sdpa_kernel(BACKENDS):
            return torch_gradients(self, dy, xs, needed, again=False)

    def tangent(self, changes, xs):
        (query, key, value), (of_query, of_key, of_value) = self._by_head(xs), self._by_head(changes)
        scale = self.scale or query.shape[-1] ** -0.5
        scores = (query @ key.mT).mul_(scale)
        if self.is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
            scores.masked_fill_(later, -torch.inf)
        if self.mask is not None and self.mask.dtype == torch.bool:
            scores.masked_fill_(~self.mask, -torch.inf)
        elif self.mask is not None:
            scores = scores + self.mask
        weights = torch._safe_softmax(scores, -1)
        total = None if of_value is None else weights @ of_value
        steps = [a @ b.mT for a, b in ((of_query, key), (query, of_key)) if a is not None and b is not None]
        if not steps:
            return total
        step = weights * sum(steps[1:], steps[0]).mul_(scale)
        step -= weights * step.sum(-1, keepdim=True)
        return step @ value if total is None else total.add_(step @ value)

    def _by_head(self, tensors: Sequence[Tensor | None]) -> Sequence[Any]:
        """Queries, keys and values, these once for every head of the queries."""
        if self.groups == 1:
            return tensors
        query, *others = tensors
        return [query, *(t if t is None else t.repeat_interleave(self.groups, -3) for t in others)]
