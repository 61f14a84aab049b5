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
        x, weight, padding_idx, place = self.input, self.weight, self.padding_idx, tape.place(self.input)
        if place is None:
            return NotImplemented
        output, samples = F.embedding(x, weight, padding_idx), tape.samples

        def contributions(dy: Tensor) -> Parts:
            tokens = place.first(x, samples)
            yield weight, EmbeddingWeight(tokens, place.first(dy, samples), len(weight), padding_idx)

        return tape.watch(output, (weight,), contributions)
