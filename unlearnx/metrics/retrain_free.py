"""Whether a forget set is taken for unseen data, without a retrained model: RF-JSD."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._checks import known_as
from unlearnx._data import Data
from unlearnx.metrics.agreement import divergence
from unlearnx.metrics.jackknife import left_out_variance, normal_interval
from unlearnx.metrics.lira import Estimate
from unlearnx.metrics.outputs import each_batch, log_probabilities, of_labels

FEWEST = 2  # samples of a class, of which one can be left out


@checked
def rf_jsd(
    model: nn.Module,
    original: nn.Module,
    forget: Data,
    unseen: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> float:
    """Retrain-free Jensen-Shannon divergence, in nats, from 0 to ln 2: is the forget set taken for unseen data?

    For each class of the forget set, the mean of the unlearned model's probabilities over its samples is compared with
    that of the original model over unseen samples of the class; the value is the mean over the classes. Near 0, the
    model does on average with forgotten samples what it did with samples that it never saw. Single samples may still
    differ, and a whole class that was forgotten never is near 0.

    Args:
        model: the unlearned model; maps x to class scores (N, classes).
        original: the model before unlearning.
        forget: samples (x, y) that were to be forgotten.
        unseen: samples that neither model was trained on, of each class of `forget`.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Raises:
        ValueError: outputs are not scores (N, classes) or not finite, or a class of `forget` is not in `unseen`.

    Source: Spartalis et al., "LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty", CVPR 2025, section 4.
    Its code clamps, takes the divergence with its arguments swapped, and divides by the sum over all classes.

    Example:
        >>> x, y = torch.randn(20, 8), torch.arange(20) % 3
        >>> model = nn.Linear(8, 3)
        >>> rf_jsd(model, model, (x, y), (x, y))
        0.0
    """
    own, others = _of_classes(model, original, forget, unseen, {"batch_size": batch_size, "autocast": autocast})
    p, q = (torch.stack([rows[c].mean(0) for c in own]) for rows in (own, others))
    return float(divergence(p.log(), q.log()).mean())


@checked
def rf_jsd_interval(
    model: nn.Module,
    original: nn.Module,
    forget: Data,
    unseen: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Estimate:
    """:func:`rf_jsd` with its 95 % interval: what it would be of other samples, as many of each class.

    Few samples raise the value, and the interval with it: means of two halves of the same samples are not at 0 either.
    Compare with that, ``rf_jsd_interval(original, original, half, other_half)``. The interval is that of the jackknife
    over the samples of each class of either set.

    Args:
        model, original, forget, unseen, batch_size, autocast: as for :func:`rf_jsd`.

    Raises:
        ValueError: as for :func:`rf_jsd`, or a class of `forget` has one sample only in either set.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> model, original = nn.Linear(8, 3), nn.Linear(8, 3)
        >>> found = rf_jsd_interval(model, original, (x[:30], y[:30]), (x[30:], y[30:]))
        >>> found.low < found.value < found.high
        True
    """
    sets = _of_classes(model, original, forget, unseen, {"batch_size": batch_size, "autocast": autocast})
    for name, rows in zip(("forget", "unseen"), sets, strict=True):
        for c in sets[0]:
            if len(rows[c]) < FEWEST:
                raise ValueError(f"{name}: has one sample of class {c}, expected {FEWEST} of each or more")
    values, variances = [], []
    for c in sets[0]:
        own, other = (rows[c] for rows in sets)
        values.append(_between(own.mean(0, keepdim=True), other))
        variances += [left_out_variance(_between(_without_each(a), b)) for a, b in ((own, other), (other, own))]
    return normal_interval(float(torch.cat(values).mean()), sum(variances) / len(values) ** 2, math.log(2))


def _without_each(rows: Tensor) -> Tensor:
    """The mean over all rows but one, for each, (n, classes)."""
    return ((rows.sum(0) - rows) / (len(rows) - 1)).clamp(min=0)


def _between(means: Tensor, rows: Tensor) -> Tensor:
    """The divergence of each of these means (n, classes) from that of the rows, (n,)."""
    return divergence(means.log(), rows.mean(0).log().expand_as(means))


def _of_classes(
    model: nn.Module, original: nn.Module, forget: Data, unseen: Data, settings: dict[str, Any]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The probabilities of the samples of each class, (n, classes): of the forget set by the one model, in the order of
    the classes, and of unseen samples by the other."""
    with known_as(data="forget"):
        own = _by_class(model, forget, "model", settings)
    with known_as(data="unseen"):
        others = _by_class(original, unseen, "original", settings)
    lacking = sorted(own.keys() - others.keys())
    if lacking:
        raise ValueError(f"unseen: has no sample of class {lacking[0]}, expected some of each class of forget")
    scores, other_scores = (next(iter(rows.values())).shape[1] for rows in (own, others))
    if scores != other_scores:
        raise ValueError(f"original: returned {other_scores} scores, expected {scores} as from model")
    return {c: own[c] for c in sorted(own)}, others


def _by_class(model: nn.Module, data: Data, name: str, settings: dict[str, Any]) -> dict[int, Tensor]:
    rows: dict[int, list[Tensor]] = {}

    def add(output: Any, y: Any) -> None:
        p = log_probabilities(output).exp().cpu()
        of_labels(p, y.cpu())  # refuses what are no classes
        for c in y.unique().tolist():
            rows.setdefault(c, []).append(p[(y == c).cpu()])

    with known_as(model=name):
        each_batch((model,), data, settings["batch_size"], settings["autocast"], add, names=(name,))
    return {c: torch.cat(own) for c, own in rows.items()}
