"""The likelihood ratio attack: membership inference by shadow models, sample by sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unlearnx._arguments import checked
from unlearnx._checks import check_at_least_one
from unlearnx._extras import extra

CONFIDENCE_LEVEL = 0.95  # of the intervals
MIN_MODELS_FOR_OWN_VARIANCE = 8  # with and without a sample; with fewer models all samples share one variance
MIN_DEVIATION = 1e-12  # standard deviation of a Gaussian where all shadow models agree
MAX_BOOTSTRAP_ENTRIES = 2**24  # numbers that the bootstrap holds in memory at a time


class Estimate(NamedTuple):
    """A number and its 95 % confidence interval.

    Example:
        >>> Estimate(0.7, low=0.6, high=0.8).low
        0.6
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class LiRA:
    """What the likelihood ratio attack finds; :func:`lira` runs it.

    Attributes:
        scores: float64 (M,), higher for samples that look like members. Online: logarithm of the likelihood ratio, in
            nats. Offline: standard deviations above the mean of the models without the sample.
        members: bool (M,), the truth.
        auc: area under the ROC curve; 0.5 where the attack does no better than guessing.
        auc_interval: 95 % confidence interval of `auc`: percentiles of a bootstrap that resamples members and
            non-members separately.
        online: whether models with the sample were used.
        shared_variance: whether the Gaussians of all samples share one variance.

    Example:
        >>> members = torch.arange(40) < 20
        >>> shadow_in = torch.rand(16, 40) < 0.5
        >>> shadows = torch.randn(16, 40) + 2 * shadow_in  # confidences of 16 models, higher where they saw the sample
        >>> found = lira(torch.randn(40) + 2 * members, shadows, shadow_in, members, bootstrap=100)
        >>> found.tpr(0.1).low <= found.tpr(0.1).value
        True
    """

    scores: Tensor
    members: Tensor
    auc: float
    auc_interval: tuple[float, float]
    online: bool
    shared_variance: bool

    def tpr(self, fpr: float) -> Estimate:
        """Share of members that are found while at most a share `fpr` of the non-members is called a member.

        The interval is that of Clopper and Pearson, with the threshold taken as given. With fewer than ``1 / fpr``
        non-members not one false alarm is allowed: the result is then the share of members that score above all of
        them.

        Raises:
            ImportError: SciPy is missing; it comes with ``unlearnx[experiments]``.
            ValueError: `fpr` is outside of [0, 1].
        """
        with extra("LiRA.tpr", "SciPy"):
            from scipy.stats import binomtest
        if not 0 <= fpr <= 1:
            raise ValueError(f"fpr is {fpr}, expected a share in [0, 1]")
        own, others = self.scores[self.members], self.scores[~self.members].sort(descending=True).values
        alarms = math.floor(fpr * len(others) + 1e-9)  # 0.29 * 100 is a little less than 29
        threshold = others[alarms] if alarms < len(others) else -math.inf
        found = binomtest(int((own > threshold).sum()), len(own))
        interval = found.proportion_ci(CONFIDENCE_LEVEL, "exact")
        return Estimate(float(found.statistic), float(interval.low), float(interval.high))


@checked
def lira(
    confidence: Tensor,
    shadow_confidence: Tensor,
    shadow_in: Tensor,
    members: Tensor,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> LiRA:
    """The likelihood ratio attack of Carlini et al. on one model, from confidences under shadow models.

    Gaussians are fitted to a sample's confidences under the shadow models that were trained with it ("in") and
    without it ("out"). The score is the logarithm of the ratio of their densities at the confidence under the attacked
    model (online attack). Where a sample is in no shadow model at all, only the "out" Gaussians are used, for every
    sample, so that scores stay comparable (offline attack; its score is monotone in the paper's ``1 - Pr[Z > c]``).

    Where any sample has fewer than 8 models in or out, its own variance would be noise: all samples then share one
    for "in" and one for "out", the mean square of their deviations from their own means. (The published code takes the
    variance of all confidences together, which counts the differences between samples, too.)

    Args:
        confidence: logit confidences under the attacked model, (M,), see :func:`unlearnx.metrics.logit_confidence`.
        shadow_confidence: those under S shadow models, (S, M).
        shadow_in: whether a shadow model was trained with a sample, bool (S, M).
        members: which samples the attack should call members, bool (M,): for unlearning, True for the forget set and
            False for samples that were never trained on.
        bootstrap: number of resamples for the interval of the AUC.
        seed: of the bootstrap.

    Raises:
        ValueError: shapes or dtypes do not fit, confidences are not finite, members are all or none, a sample is in
            every shadow model, or no variance can be estimated.

    Source: Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022, algorithm 1.

    Example:
        >>> members = torch.arange(40) < 20
        >>> shadow_in = torch.rand(16, 40) < 0.5
        >>> shadows = torch.randn(16, 40) + 2 * shadow_in  # confidences of 16 models, higher where they saw the sample
        >>> found = lira(torch.randn(40) + 2 * members, shadows, shadow_in, members, bootstrap=100)
        >>> found.online, found.auc > 0.7
        (True, True)
    """
    check_at_least_one(bootstrap=bootstrap)
    check_confidences(confidence, shadow_confidence, shadow_in, members)
    own, shadow = confidence.cpu().double(), shadow_confidence.cpu().double()
    shadow_in, members = shadow_in.cpu(), members.cpu()
    least_in, least_out = int(shadow_in.sum(0).min()), int((~shadow_in).sum(0).min())
    if least_out == 0:
        sample = int((~shadow_in).sum(0).argmin())
        raise ValueError(f"shadow_in: sample {sample} is in every shadow model, expected at least one without it")
    online = least_in > 0
    shared = (min(least_in, least_out) if online else least_out) < MIN_MODELS_FOR_OWN_VARIANCE
    z_out, log_deviation_out = _standardised(own, shadow, ~shadow_in, shared)
    scores = z_out
    if online:
        z_in, log_deviation_in = _standardised(own, shadow, shadow_in, shared)
        scores = (z_out.square() - z_in.square()) / 2 + log_deviation_out - log_deviation_in
    auc, interval = auc_of(scores, members, bootstrap, seed)
    return LiRA(scores, members, auc, interval, online, shared)


def check_confidences(confidence: Tensor, shadow_confidence: Tensor, shadow_in: Tensor, members: Tensor) -> None:
    """Refuse tables that do not fit together; the arguments are those of :func:`lira`.

    Raises:
        ValueError: shapes or dtypes do not fit, values are not finite, or members are all or none.
    """
    if shadow_confidence.dim() != 2 or 0 in shadow_confidence.shape:
        raise ValueError(f"shadow_confidence: has shape {list(shadow_confidence.shape)}, expected (models, samples)")
    expected = {"confidence": shadow_confidence.shape[1:], "members": shadow_confidence.shape[1:]}
    expected["shadow_in"] = shadow_confidence.shape
    for name, t in (("confidence", confidence), ("members", members), ("shadow_in", shadow_in)):
        if t.shape != expected[name]:
            raise ValueError(
                f"{name}: has shape {list(t.shape)}, expected {list(expected[name])} as shadow_confidence has "
                f"{list(shadow_confidence.shape)}"
            )
    for name, t in (("members", members), ("shadow_in", shadow_in)):
        if t.dtype != torch.bool:
            raise ValueError(f"{name}: is {t.dtype}, expected bool")
    for name, t in (("confidence", confidence), ("shadow_confidence", shadow_confidence)):
        if not t.isfinite().all():
            raise ValueError(f"{name}: has values that are NaN or infinite, expected finite confidences")
    if members.all() or not members.any():
        raise ValueError(
            f"members: holds {int(members.sum())} of {len(members)}, expected at least one member and one non-member"
        )


def moments(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many models of each sample are chosen, (M,), their mean, and the sum of the squared deviations from it.

    Args:
        values: (S, M) float64.
        chosen: (S, M) bool.
    """
    count = chosen.sum(0)
    mean = values.where(chosen, 0).sum(0) / count
    return count, mean, (values - mean).where(chosen, 0).square().sum(0)


def _standardised(confidence: Tensor, shadow: Tensor, chosen: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """For each sample, how many standard deviations it is above the mean of its chosen models, and their logarithm.

    Args:
        confidence: (M,) float64.
        shadow: (S, M) float64.
        chosen: (S, M) bool.
        shared: whether all samples share one variance.
    """
    count, mean, squares = moments(shadow, chosen)
    if shared:
        freedom = int((count - 1).sum())
        if freedom == 0:
            raise ValueError("shadow_in: no sample has two models with it or two without it, which a variance needs")
        variance = (squares.sum() / freedom).expand_as(squares)
    else:
        variance = squares / (count - 1)
    deviation = variance.sqrt().clamp(min=MIN_DEVIATION)
    return (confidence - mean) / deviation, deviation.log()


def auc_of(scores: Tensor, members: Tensor, bootstrap: int, seed: int) -> tuple[float, tuple[float, float]]:
    """Area under the ROC curve and its bootstrap interval. Equal scores count half."""
    values, place = scores.unique(return_inverse=True)
    own, others = place[members], place[~members]

    def area(own: Tensor, others: Tensor) -> Tensor:
        """Areas (B,) of B resamples, given as indices into the sorted values, (B, members) and (B, others)."""
        counts = [torch.zeros(len(t), len(values), dtype=torch.float64) for t in (own, others)]
        for count, t in zip(counts, (own, others), strict=True):
            count.scatter_add_(1, t, torch.ones(t.shape, dtype=torch.float64))
        beaten = counts[1].cumsum(1) - counts[1] / 2
        return (counts[0] * beaten).sum(1) / (own.shape[1] * others.shape[1])

    generator = torch.Generator().manual_seed(seed)

    def resampled(t: Tensor, times: int) -> Tensor:
        return t[torch.randint(len(t), (times, len(t)), generator=generator)]

    step = max(1, MAX_BOOTSTRAP_ENTRIES // len(values))
    areas = torch.cat(
        [
            area(resampled(own, times), resampled(others, times))
            for times in (min(step, bootstrap - start) for start in range(0, bootstrap, step))
        ]
    )
    low, high = areas.quantile(
        torch.tensor([(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], dtype=torch.float64)
    ).tolist()
    return float(area(own[None], others[None])), (low, high)
