"""Forgetting too much: a model that is worse on the forget set than one that never saw it reveals the set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._batches import Nest
from unlearnx._data import Data
from unlearnx._extras import extra
from unlearnx._labels import labelled, predictions
from unlearnx.metrics.outputs import each_batch


@checked
def over_forgetting(
    model: nn.Module,
    retrained: nn.Module,
    forget: Data,
    *,
    confidence: float = 0.95,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> str | None:
    """A warning where a model is significantly less accurate on the forget set than a retrained one, else None.

    The errors then reveal which samples were forgotten (the Streisand effect). The test is McNemar's, exact and
    one-sided: among the samples that only one of the two models gets right, are there significantly more that only the
    retrained one gets right?

    Args:
        model: the unlearned model; maps x to scores as for :func:`unlearnx.metrics.accuracy`.
        retrained: a model that never saw the forget set.
        forget: pairs (x, y).
        confidence: 1 minus the significance level of the test.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ImportError: SciPy is missing; it comes with ``unlearnx[experiments]``.
        ValueError: `confidence` is outside of (0, 1), the data is empty, no label counts, or labels do not fit the
            scores.

    Source: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020 (the effect); McNemar, "Note on the
    sampling error of the difference between correlated proportions or percentages", 1947.

    Example:
        >>> retrained, worse, x = nn.Linear(8, 3), nn.Linear(8, 3), torch.randn(100, 8)
        >>> forget = x, retrained(x).argmax(1)
        >>> over_forgetting(retrained, retrained, forget) is None, over_forgetting(worse, retrained, forget) is None
        (True, False)
    """
    with extra("over_forgetting", "SciPy"):
        from scipy.stats import binomtest
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")

    def correct(own: Any, other: Any, y: Nest) -> Tensor:
        return torch.stack([_right(output, y) for output in (own, other)])

    models, names = (model, retrained), ("model", "retrained")
    found = each_batch(models, forget, batch_size, autocast, correct, aligned=True, names=names)
    own, other = torch.cat(found, 1).cpu()
    if not own.numel():
        raise ValueError("forget: no label counts, expected some to compare predictions with")
    lost, won = int((other & ~own).sum()), int((own & ~other).sum())
    if lost == 0:
        return None
    p = binomtest(lost, lost + won, alternative="greater").pvalue
    if p > 1 - confidence:
        return None
    return (
        f"The model gets {own.double().mean():.1%} of the forget set right, a retrained one "
        f"{other.double().mean():.1%} (McNemar's exact test on {len(own)} samples: p = {p:.2g}). It forgot too much: "
        "its errors reveal which samples were forgotten."
    )


def _right(output: Any, y: Nest) -> Tensor:
    """For each label that counts, whether it is predicted."""
    if not isinstance(y, Tensor):
        raise ValueError(f"data: labels are a {type(y).__name__}, expected a tensor")
    counts = labelled(output, y)
    return predictions(output, y)[counts] == y[counts]
