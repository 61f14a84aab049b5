"""Forgetting quality: can unlearned models be told from retrained ones, example by example?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOOKED_UP_AT_ONCE = 2**22  # intervals of all examples together


@dataclass(frozen=True, eq=False)
class ForgettingQuality:
    """How well a method forgets; :func:`forgetting_quality` finds it.

    Attributes:
        epsilon: of every example, float64 (M,), in nats: 0 where unlearned models cannot be told from retrained ones,
            infinite where they always can.
        points: of every example, float64 (M,): ``2^-floor(2 epsilon)``, 1 below 0.5, half of that below 1 and so on.
        quality: mean of the points, in [0, 1]; 1 is ideal.
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
                raise ValueError(f"{name} is {value}, expected an accuracy in [0, 1], of a reference above 0")
        return self.quality * (retain / retain_reference) * (test / test_reference)


def forgetting_quality(unlearned: Tensor, retrained: Tensor, *, delta: float = 1e-5) -> ForgettingQuality:
    """Forgetting quality of the NeurIPS 2023 competition, from confidences under many models.

    For each example, attacks try to tell the unlearned models from the retrained ones by their confidence in it: all
    those that answer "unlearned" on one side of a threshold, or between two thresholds, and their opposites. Each has a
    false positive rate FPR and a false negative rate FNR, and shows that epsilon is at least
    ``max(ln((1 - delta - FPR) / FNR), ln((1 - delta - FNR) / FPR))``; the largest of these counts, 0 at least.

    As in the competition's code, FPR = FNR = 0 gives infinity, an attack of which only one is 0 is left out, as a sign
    of too few models, and so is the logarithm of what is not positive. Unlike there, thresholds are not taken from a
    grid but between all neighbouring confidences: no attack is missed, epsilon may be larger, and the special rule for
    very narrow distributions is not needed.

    Finite samples let even perfect unlearning look imperfect: compare with the quality of one half of the retrained
    models against the other.

    Args:
        unlearned: confidences (models, examples) in the labels of the forget set, under models unlearned with different
            seeds, see :func:`unlearnx.metrics.logit_confidence`.
        retrained: the same under models that were retrained.
        delta: probability that is left out of account.

    Raises:
        ValueError: shapes do not fit, there are fewer than two models of a kind, values are NaN, or `delta` is outside
            of [0, 1).

    Source: Triantafillou et al., "Are we making progress in unlearning? Findings from the first NeurIPS unlearning
    competition", 2024, and its public code.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}, expected a number in [0, 1)")
    for name, t in (("unlearned", unlearned), ("retrained", retrained)):
        if t.dim() != 2 or len(t) < 2 or t.shape[1] == 0:
            raise ValueError(f"{name}: has shape {list(t.shape)}, expected (models, examples) with two models at least")
        if t.isnan().any():
            raise ValueError(f"{name}: has values that are NaN")
    if unlearned.shape[1] != retrained.shape[1]:
        raise ValueError(f"retrained: has {retrained.shape[1]} examples, expected {unlearned.shape[1]} as of unlearned")
    epsilon = _strongest(_paths(unlearned.cpu(), retrained.cpu()), _table(len(unlearned), len(retrained), delta))
    points = torch.exp2(-torch.floor(2 * epsilon))
    return ForgettingQuality(epsilon, points, points.mean().item())


def _table(n: int, m: int, delta: float) -> Tensor:
    """Epsilon that an interval shows, ((n + 1) * (m + 1),): entry ``a * (m + 1) + b`` is that of one which holds `a` of
    n unlearned and `b` of m retrained values, the better of calling "unlearned" what is inside or what is outside.
    """
    inside = torch.arange(n + 1, dtype=torch.float64)[:, None] / n
    alarms = torch.arange(m + 1, dtype=torch.float64) / m
    # Complements from the counts, so that none is zero by rounding alone, or misses being zero.
    outside, quiet = inside.flip(0), alarms.flip(0)
    return torch.maximum(_epsilon(alarms, outside, delta), _epsilon(quiet, inside, delta)).flatten()


def _epsilon(fpr: Tensor, fnr: Tensor, delta: float) -> Tensor:
    def term(a: Tensor, b: Tensor) -> Tensor:
        return ((1 - delta - a).clamp(min=0) / b).log().clamp(min=0)

    value = torch.maximum(term(fpr, fnr), term(fnr, fpr))
    value = torch.where((fpr == 0) | (fnr == 0), 0, value)
    return torch.where((fpr == 0) & (fnr == 0), torch.inf, value)


def _paths(unlearned: Tensor, retrained: Tensor) -> Tensor:
    """int64 (examples, n + m + 1): how many values lie below each threshold, ascending, as places in :func:`_table`.

    Between equal values there is no threshold: the next one above stands in.
    """
    n, m = len(unlearned), len(retrained)
    values, order = torch.cat([unlearned, retrained.to(unlearned)]).double().T.sort(1)
    steps = torch.where(order < n, m + 1, 1)
    path = torch.cat([torch.zeros(len(steps), 1, dtype=torch.int64), steps.cumsum(1)], 1)
    between = torch.ones(path.shape, dtype=torch.bool)
    between[:, 1:-1] = values[:, 1:] != values[:, :-1]
    number = torch.arange(n + m + 1).where(between, n + m)
    return path.gather(1, number.flip(1).cummin(1).values.flip(1))


def _strongest(paths: Tensor, table: Tensor) -> Tensor:
    """The largest entry (examples,) among all intervals between two thresholds."""
    thresholds = paths.shape[1]
    chunks = []
    for rows in paths.split(max(1, LOOKED_UP_AT_ONCE // thresholds)):
        best = torch.zeros(len(rows), dtype=table.dtype)
        for i in range(thresholds - 1):
            best = torch.maximum(best, table[rows[:, i + 1 :] - rows[:, i : i + 1]].amax(1))
        chunks.append(best)
    return torch.cat(chunks)
