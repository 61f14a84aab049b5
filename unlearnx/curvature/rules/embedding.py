"""Embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.contributions import EmbeddingWeight
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
        x, weight, padding_idx, axis = self.input, self.weight, self.padding_idx, tape.sample_axis(self.input)
        if axis is None:
            return NotImplemented
        output = F.embedding(x, weight, padding_idx)

        def contributions(dy: Tensor) -> Parts:
            yield weight, EmbeddingWeight(x.movedim(axis, 0), dy.movedim(axis, 0), len(weight), padding_idx)

        return tape.watch(output, (weight,), contributions)
