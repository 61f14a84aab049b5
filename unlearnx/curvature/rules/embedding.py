"""Embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.contributions import EmbeddingWeight
from unlearnx.curvature.layers import Derivatives
from unlearnx.curvature.linearised import Linearised
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of


@rule_of(F.embedding)
@dataclass
class Embedding(Rule):
    """``F.embedding``."""

    input: Tensor
    weight: Tensor
    padding_idx: int | None = None
    max_norm: float | None = None
    norm_type: float = 2.0
    scale_grad_by_freq: bool = False
    sparse: bool = False

    def watched(self, tape: Recorder) -> Any:
        if self.max_norm is not None or self.scale_grad_by_freq:
            return NotImplemented
        x, weight, padding_idx, place = self.input, self.weight, self.padding_idx, tape.place(self.input)
        if place is None:
            return NotImplemented
        output, samples = F.embedding(x, weight, padding_idx), tape.samples

        def contributions(dy: Tensor) -> Parts:
            tokens = place.first(x, samples)
            yield weight, EmbeddingWeight(tokens, place.first(dy, samples), len(weight), padding_idx)

        return tape.watch(output, (weight,), contributions)

    def twice(self, derivatives: Derivatives) -> Any:
        if self.max_norm is not None or self.scale_grad_by_freq:
            return NotImplemented
        padding_idx = None if self.padding_idx is None else self.padding_idx % len(self.weight)
        return derivatives.of_parameter(_Rows(self.input, padding_idx), self.weight)


class _Rows(Linearised):
    """Rows of a matrix, of which that of the padding is constant."""

    is_linear = True

    def __init__(self, rows: Tensor, padding_idx: int | None):
        self.rows, self.padding_idx = rows, padding_idx

    def value(self, weight):
        return F.embedding(self.rows, weight)

    def tangent(self, changes, xs):
        change = F.embedding(self.rows, changes[0])
        return (
            change if self.padding_idx is None else change.masked_fill_((self.rows == self.padding_idx)[..., None], 0)
        )

    def gradients(self, dy, xs, needed):
        padding = -1 if self.padding_idx is None else self.padding_idx
        return [torch.ops.aten.embedding_dense_backward(dy, self.rows, len(xs[0]), padding, False)]
