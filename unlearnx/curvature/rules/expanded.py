"""Parameters that are expanded to one copy a sample, as tokens of a class."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from unlearnx.curvature.contributions import StoredGradients
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of
from unlearnx.ops._dtypes import compute_dtype

FUNCTIONS = (Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.broadcast_to, Tensor.broadcast_to, torch.tile)


class Expanded(Rule):
    """A call of one of those functions on a weight, whose result has a dimension of the samples."""

    def __init__(self, function: Any, weight: Tensor, *args: Any, **kwargs: Any):
        self.function, self.weight, self.args, self.kwargs = function, weight, args, kwargs

    def watched(self, tape: Recorder) -> Any:
        if not tape.is_weight(self.weight):
            return NotImplemented
        result = self.function(self.weight, *self.args, **self.kwargs)
        weight, place, samples = self.weight, tape.place_of_result(result), tape.samples
        own = (1,) * (result.dim() - weight.dim()) + tuple(weight.shape)
        pairs = list(zip(own, result.shape, strict=True))
        if place is None or place.folded or own[place.axis] != 1 or any(a not in (1, b) for a, b in pairs):
            return NotImplemented
        added = [i for i, (a, b) in enumerate(pairs) if a != b and i != place.axis]

        def contributions(dy: Tensor) -> Parts:
            rows = dy.sum(added, keepdim=True, dtype=compute_dtype(dy)) if added else dy.to(compute_dtype(dy))
            yield weight, StoredGradients(rows.movedim(place.axis, 0).reshape(samples, *weight.shape))

        return tape.spread(weight, result.shape, contributions)


for _function in FUNCTIONS:
    rule_of(_function)(partial(Expanded, _function))
