"""The score of the NeurIPS 2023 competition: can unlearned models be told from retrained ones, image by image?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from unlearnx.metrics import forgetting_quality

EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, math.inf)  # of the bins of epsilon that are counted, in nats
FEWEST = 4  # models of a kind, since the retrained ones are compared half against half


def quality(
    confidences: Mapping[str, Sequence[Tensor]], accuracies: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, Any]:
    """The competition's score of every method, and of some retrained models against the others.

    Args:
        confidences: of each model by its name, the logit confidences (M,) in the labels of one forget set, a tensor a
            seed; ``"retrained"`` among them.
        accuracies: of the same, accuracies on the retain and the test set.

    Returns:
        The number of ``models`` of a kind, the ``edges`` of the bins of epsilon,
        and by name the ``quality``, the ``score``, and the share of the images in each of the ``bins``.
    """
    stacked = {name: torch.stack(list(rows)).double() for name, rows in confidences.items()}
    retrained = stacked.pop("retrained")
    half = len(retrained) // 2
    rows = {"retrained": _row(retrained[:half], retrained[half:], 1.0)}
    reference = _means(accuracies["retrained"])
    for name, own in stacked.items():
        kept = _means(accuracies[name])
        rows[name] = _row(own, retrained, math.prod(kept[part] / reference[part] for part in kept))
    edges = [None if math.isinf(edge) else edge for edge in EDGES]
    return {"models": len(retrained), "edges": edges, "rows": rows}


def _row(unlearned: Tensor, retrained: Tensor, kept: float) -> dict[str, Any]:
    found = forgetting_quality(unlearned, retrained)
    # Bins hold their lower end, infinity is in the last one.
    index = torch.bucketize(found.epsilon, torch.tensor(EDGES[1:-1], dtype=torch.float64), right=True)
    bins = torch.bincount(index, minlength=len(EDGES) - 1) / len(index)
    return {"quality": found.quality, "score": found.quality * kept, "bins": bins.tolist()}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: fmean(row[f"{part}_accuracy"] for row in rows) for part in ("retain", "test")}
