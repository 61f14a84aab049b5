"""Forgetting quality: can unlearned models be told from retrained ones, sample by sample?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx._arguments import checked

VARIANTS = ("exhaustive", "competition")
CHUNK_SAMPLES = 256  # samples whose intervals are looked up together, which bounds the memory
# From the competition's code:
THRESHOLDS_PER_UNIT = 100  # thresholds on the grid, per unit of confidence
MAX_OFFSET = 2.0  # of an interval's upper end, and of its width, from those of the narrower set of confidences
MIN_RANGE_RATIO = 0.01  # of the two ranges of confidences; below it the models count as told apart


@dataclass(frozen=True, eq=False)
class ForgettingQuality:
    """How well a method forgets; :func:`forgetting_quality` finds it.

    Attributes:
        epsilon: one value for each sample, float64 (M,), in nats: 0 where unlearned models cannot be told from
            retrained ones, infinite where they always can.
        points: what the competition gives each sample, float64 (M,): ``2^-floor(2 epsilon)``, that is 1 for an epsilon
            below 0.5, 1/2 below 1, 1/4 below 1.5 and so on.
        quality: mean of the points, in [0, 1]; 1 is ideal.

    Example:
        >>> found = forgetting_quality(torch.randn(64, 5), torch.randn(64, 5) + 9)  # nothing was forgotten
        >>> found.epsilon, found.score(0.9, 0.9, 0.8, 0.8)
        (tensor([inf, inf, inf, inf, inf], dtype=torch.float64), 0.0)
    """

    epsilon: Tensor
    points: Tensor
    quality: float

    def score(self, retain: float, retain_reference: float, test: float, test_reference: float) -> float:
        """The competition's score: ``quality * retain / retain_reference * test / test_reference``.

        Args:
            retain: mean accuracy of the unlearned models on the retain set.
            retain_reference: that of the retrained models.
            test: mean accuracy of the unlearned models on the test set.
            test_reference: that of the retrained models.

        Raises:
            ValueError: an accuracy is outside of [0, 1], or one of the retrained models is 0.
        """
        given = {"retain": retain, "retain_reference": retain_reference, "test": test, "test_reference": test_reference}
        for name, value in given.items():
            if not 0 <= value <= 1 or (value == 0 and name.endswith("reference")):
                raise ValueError(f"{name} is {value}, expected an accuracy in [0, 1], and above 0 for a reference")
        return self.quality * (retain / retain_reference) * (test / test_reference)


@checked
def forgetting_quality(
    unlearned: Tensor, retrained: Tensor, *, delta: float = 1e-5, variant: str = "exhaustive"
) -> ForgettingQuality:
    """Forgetting quality of the NeurIPS 2023 competition, from confidences under many models.

    For each sample, attacks try to tell the unlearned models from the retrained ones by their confidence in it: they
    answer "unlearned" on one side of a threshold, or between two thresholds, or the opposite. Each has a false positive
    rate FPR and a false negative rate FNR, which prove that epsilon is at least
    ``max(ln((1 - delta - FPR) / FNR), ln((1 - delta - FNR) / FPR))``; the largest of these bounds counts, 0 at least.
    As in the competition's code, FPR = FNR = 0 gives infinity. Left out are attacks for which only one of the two is 0
    (a sign of too few models) and logarithms of numbers that are not positive.

    The best of many attacks on a sample succeeds partly by chance: even perfect unlearning does not reach 1. Compare
    with the quality of some retrained models against the others. With 512 models of each kind, equal distributions have
    about 0.05, and 0.13 to 0.22 in the competition's variant.

    Args:
        unlearned: confidences (models, samples) in the labels of the forget set, under models unlearned with different
            seeds, see :func:`unlearnx.metrics.logit_confidence`.
        retrained: the same under models that were retrained.
        delta: probability with which the bound on epsilon may fail, as in (epsilon, delta)-differential privacy.
        variant: which attacks there are. ``"exhaustive"``: all of them, with thresholds between any neighbouring
            confidences. ``"competition"``: those of the competition's code, for comparison with published numbers:
            thresholds on a grid of steps of 0.01; attacks with one threshold, above which the guess is the kind of
            model with the larger median; attacks with two thresholds, between which the guess is the kind with the
            smaller range, where the upper threshold is within 2 of its largest confidence and the distance of the two
            within 2 of its range. Where the ranges differ by a factor of more than 100, epsilon is infinite.

    Raises:
        ValueError: shapes do not fit, there are fewer than two models of a kind, values are complex or NaN (or
            infinite, in the competition's variant), the variant is unknown, or `delta` is outside of [0, 1).

    Source: Triantafillou et al., "Are we making progress in unlearning? Findings from the first NeurIPS unlearning
    competition", 2024, and its public code.

    Example:
        >>> confidences = torch.randn(256, 5)  # of 256 models in 5 samples
        >>> alike = forgetting_quality(confidences, torch.randn(256, 5))
        >>> alike.quality > forgetting_quality(confidences, confidences + 3).quality
        True
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {', '.join(map(repr, VARIANTS))}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}, expected a number in [0, 1)")
    for name, t in (("unlearned", unlearned), ("retrained", retrained)):
        if t.dim() != 2 or len(t) < 2 or t.shape[1] == 0:
            raise ValueError(f"{name}: has shape {list(t.shape)}, expected (models, samples) with at least two models")
        if t.is_complex():
            raise ValueError(f"{name}: has dtype {t.dtype}, expected real numbers")
        if t.isnan().any() or (variant == "competition" and t.isinf().any()):
            raise ValueError(f"{name}: has values that are NaN or infinite, expected finite confidences")
    if unlearned.shape[1] != retrained.shape[1]:
        raise ValueError(f"retrained: has {retrained.shape[1]} samples, expected {unlearned.shape[1]} as unlearned has")
    u, r = unlearned.cpu().double(), retrained.cpu().double()
    inside, outside = _tables(len(u), len(r), delta)
    if variant == "exhaustive":
        epsilon = _strongest(_paths(u, r), torch.maximum(inside, outside))
    else:
        # Whether unlearned or retrained is called positive makes no difference: FPR and FNR change places.
        pairs = zip(u.T.contiguous(), r.T.contiguous(), strict=True)
        epsilon = torch.stack([_of_the_competition(a, b, inside, outside) for a, b in pairs])
    points = torch.exp2(-torch.floor(2 * epsilon))
    return ForgettingQuality(epsilon, points, points.mean().item())


def _tables(n: int, m: int, delta: float) -> tuple[Tensor, Tensor]:
    """Two tables ((n + 1) * (m + 1),) of the epsilon that an interval proves: guessing "unlearned" inside it, or
    outside.

    Entry ``a * (m + 1) + b`` belongs to an interval that holds `a` of n unlearned and `b` of m retrained values.
    """
    found = torch.arange(n + 1, dtype=torch.float64)[:, None] / n
    alarms = torch.arange(m + 1, dtype=torch.float64) / m
    # 1 - found is computed from the counts by reversing them, so that it is exactly 0 where it should be.
    missed, quiet = found.flip(0), alarms.flip(0)
    return _epsilon(alarms, missed, delta).flatten(), _epsilon(quiet, found, delta).flatten()


def _epsilon(fpr: Tensor, fnr: Tensor, delta: float) -> Tensor:
    def term(a: Tensor, b: Tensor) -> Tensor:
        return ((1 - delta - a).clamp(min=0) / b).log().clamp(min=0)

    value = torch.maximum(term(fpr, fnr), term(fnr, fpr))
    value = torch.where((fpr == 0) | (fnr == 0), 0, value)
    return torch.where((fpr == 0) & (fnr == 0), torch.inf, value)


def _paths(unlearned: Tensor, retrained: Tensor) -> Tensor:
    """How many values lie below each threshold, as indices into a table of :func:`_tables`: int64 (samples, n + m + 1).

    Thresholds ascend. There is none between equal values: the next one above takes its place.
    """
    n, m = len(unlearned), len(retrained)
    values, order = torch.cat([unlearned, retrained]).T.sort(1)
    steps = torch.where(order < n, m + 1, 1)
    path = torch.cat([torch.zeros(len(steps), 1, dtype=torch.int64), steps.cumsum(1)], 1)
    between = torch.ones(path.shape, dtype=torch.bool)
    between[:, 1:-1] = values[:, 1:] != values[:, :-1]
    number = torch.arange(n + m + 1).where(between, n + m)
    return path.gather(1, number.flip(1).cummin(1).values.flip(1))


def _strongest(paths: Tensor, table: Tensor) -> Tensor:
    """The largest table entry (samples,) over all intervals between two thresholds."""
    thresholds = paths.shape[1]
    chunks = []
    for rows in paths.split(CHUNK_SAMPLES):
        best = torch.zeros(len(rows), dtype=table.dtype)
        for i in range(thresholds - 1):
            places = rows[:, i + 1 :] - rows[:, i : i + 1]
            best = torch.maximum(best, table.index_select(0, places.flatten()).view_as(places).amax(1))
        chunks.append(best)
    return torch.cat(chunks)


def _of_the_competition(unlearned: Tensor, retrained: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Epsilon of one sample, (n,) against (m,), by the attacks of the competition's code; 0-d."""
    unlearned, retrained = unlearned.sort().values, retrained.sort().values
    ends = torch.stack([unlearned[[0, -1]], retrained[[0, -1]]])
    ranges = ends[:, 1] - ends[:, 0]
    if ranges.min() < MIN_RANGE_RATIO * ranges.max():
        return torch.tensor(torch.inf, dtype=torch.float64)

    def strongest(table: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The largest entry over all intervals from `low` to `high`, both included."""
        a, b = (
            (torch.searchsorted(t, high, right=True) - torch.searchsorted(t, low)).clamp(min=0)
            for t in (unlearned, retrained)
        )
        return table[a * (len(retrained) + 1) + b].max()

    def grid(low: float, high: float) -> Tensor:
        return torch.linspace(low, high, max(1, math.ceil((high - low) * THRESHOLDS_PER_UNIT)), dtype=torch.float64)

    above = grid(ends.min().item(), ends.max().item())
    retrained_above = retrained.quantile(0.5) > unlearned.quantile(0.5)
    single = strongest(outside if retrained_above else inside, above, torch.tensor([torch.inf], dtype=above.dtype))
    narrower = int(ranges.argmin())
    start, end = ends[narrower].tolist()
    high = grid(end - MAX_OFFSET, end + MAX_OFFSET)[:, None]
    low = high - (end - start) + grid(-MAX_OFFSET, MAX_OFFSET)
    double = strongest(outside if narrower else inside, low, high)
    return torch.maximum(single, double)
