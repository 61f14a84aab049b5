"""How far the margins of unlearned models are from those of retrained ones, sample by sample: KLOM."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx._arguments import checked
from unlearnx._checks import check_at_least_one
from unlearnx.metrics.jackknife import left_out_variance, normal_interval
from unlearnx.metrics.lira import Estimate

FLOOR = 1e-5  # of a bin's share, so that empty bins give finite divergences
FURTHEST = 100.0  # margin beyond which all are one


@checked
def klom(unlearned: Tensor, retrained: Tensor, *, bins: int = 20) -> Tensor:
    """Kullback-Leibler divergence of margins for each sample, in nats, float64 (M,): 0 where unlearning is retraining.

    For a sample, the logit confidences under many retrained models and under many unlearned ones are two histograms
    over the same bins; the value is ``KL(retrained || unlearned)``. The mean over the forget set tells what was not
    forgotten or forgotten too much, over the retain and the test set what else has changed. With few models even
    equal distributions differ: compare with the value of one half of the retrained models against the other.

    Args:
        unlearned: logit confidences under K unlearned models, (K, M), see
            :func:`unlearnx.metrics.logit_confidence`; each from another training and unlearning.
        retrained: the same under L models that were trained without the forget set, (L, M).
        bins: of each histogram, of equal width from the least to the greatest margin of the sample.

    Raises:
        ValueError: shapes do not fit, there are fewer than two models of a kind, or values are not finite.

    Source: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", 2024, section 2.2, with
    the bins and the floor of 1e-5 of its code.

    Example:
        >>> retrained = torch.randn(100, 5)
        >>> near, far = klom(torch.randn(100, 5), retrained), klom(torch.randn(100, 5) + 3, retrained)
        >>> bool((near < far).all())
        True
    """
    return _divergences(*_checked(unlearned, retrained, bins), bins)


@checked
def klom_interval(unlearned: Tensor, retrained: Tensor, *, bins: int = 20) -> Estimate:
    """The mean of :func:`klom` over the samples, in nats, with its 95 % interval: what it would be with other samples
    and other models, as many of each.

    Few models raise the value, and the interval with it: compare with one half of the retrained models against the
    other, ``klom_interval(retrained[::2], retrained[1::2])``, where there are as many unlearned ones. The variance is
    the sum of that over samples and of those over unlearned and over retrained models, by the jackknife. What these
    have in common counts more than once, so that the interval is rather too wide than too narrow.

    Args:
        unlearned, retrained, bins: as for :func:`klom`; two samples or more.

    Raises:
        ValueError: as for :func:`klom`, or there is one sample only.

    Example:
        >>> found = klom_interval(torch.randn(30, 5) + 1, torch.randn(30, 5))
        >>> 0 < found.low < found.value < found.high
        True
    """
    a, b = _checked(unlearned, retrained, bins)
    if a.shape[1] < 2:
        raise ValueError(f"unlearned: has shape {list(unlearned.shape)}, expected two samples or more for an interval")
    values = _divergences(a, b, bins)
    without_a = torch.stack([_divergences(_without(a, k), b, bins).mean() for k in range(len(a))])
    without_b = torch.stack([_divergences(a, _without(b, k), bins).mean() for k in range(len(b))])
    variance = float(values.var()) / len(values) + left_out_variance(without_a) + left_out_variance(without_b)
    return normal_interval(float(values.mean()), variance)


def _without(t: Tensor, k: int) -> Tensor:
    return torch.cat([t[:k], t[k + 1 :]])


def _checked(unlearned: Tensor, retrained: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU, without margins that are too far out to matter."""
    check_at_least_one(bins=bins)
    for name, t in (("unlearned", unlearned), ("retrained", retrained)):
        if t.dim() != 2 or len(t) < 2 or not t.shape[1]:
            raise ValueError(f"{name}: has shape {list(t.shape)}, expected (models, samples), two models or more")
        if not t.isfinite().all():
            raise ValueError(f"{name}: has values that are NaN or infinite, expected finite confidences")
    if unlearned.shape[1] != retrained.shape[1]:
        raise ValueError(f"retrained: has {retrained.shape[1]} samples, expected {unlearned.shape[1]} as unlearned")
    a, b = (t.detach().cpu().double().clamp(-FURTHEST, FURTHEST) for t in (unlearned, retrained))
    return a, b


def _divergences(a: Tensor, b: Tensor, bins: int) -> Tensor:
    """``KL(b || a)`` of the histograms of each sample, (M,)."""
    low, high = torch.cat([a, b]).aminmax(dim=0)
    width = (high - low).where(high > low, 1.0) / bins

    def shares(t: Tensor) -> Tensor:
        place = ((t - low) / width).long().clamp(max=bins - 1)
        counts = torch.zeros(bins, t.shape[1], dtype=torch.float64).scatter_add_(0, place, torch.ones_like(t))
        floored = counts / len(t) + FLOOR
        return floored / floored.sum(0)

    p, q = shares(b), shares(a)
    return (p * (p / q).log()).sum(0)
