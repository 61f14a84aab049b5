"""Which samples a training memorises: how much likelier their labels are to models that were trained on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlearnx._arguments import checked
from unlearnx._extras import extra
from unlearnx.metrics.lira import CONFIDENCE_LEVEL, moments

FEWEST = 2  # models with a sample, and without it: fewer tell nothing of how much chance there is in them


class MemorizationScores(NamedTuple):
    """How much each sample is memorised; all float64 (M,), in [-1, 1].

    Attributes:
        score: mean probability of the sample's label under models that were trained with it, less that under models
            that were not. Near 0, the others teach the label as well; near 1, the models know it of this sample alone.
        low, high: ends of the 95 % interval. Where it holds 0, these models do not show that the sample is memorised.

    Example:
        >>> MemorizationScores(torch.tensor([0.5]), torch.tensor([0.1]), torch.tensor([0.9])).low
        tensor([0.1000])
    """

    score: Tensor
    low: Tensor
    high: Tensor


@checked
def memorization_scores(confidence: Tensor, trained_on: Tensor) -> MemorizationScores:
    """The memorisation of each sample, from models that were trained with it and others that were not.

    The intervals are those of Welch for the difference of two means. The source counts models that give the right
    label; the mean probability of the label, taken in its place, has less chance in it.

    Args:
        confidence: logit confidences of M samples under S models, (S, M), such as those of
            :func:`unlearnx.metrics.unlearned_shadows` with an `unlearn` that returns the model as it is.
        trained_on: whether a model was trained with a sample, bool (S, M): at least two were, and two were not.

    Raises:
        ImportError: SciPy is missing; it comes with ``unlearnx[experiments]``.
        ValueError: shapes or dtypes do not fit, confidences are not finite, or a sample has too few models.

    Source: Feldman and Zhang, "What Neural Networks Memorize and Why: Discovering the Long Tail via Influence
    Estimation", NeurIPS 2020, section 2.

    Example:
        >>> trained_on = torch.arange(8)[:, None] % 2 == torch.arange(3) % 2
        >>> confidence = torch.where(trained_on, 4.0, torch.tensor([4.0, 0.0, -4.0]))  # the last one is an odd sample
        >>> memorization_scores(confidence, trained_on).score
        tensor([0.0000, 0.4820, 0.9640], dtype=torch.float64)
    """
    with extra("memorization_scores", "SciPy"):
        from scipy.stats import t as student
    if confidence.dim() != 2 or 0 in confidence.shape:
        raise ValueError(f"confidence: has shape {list(confidence.shape)}, expected (models, samples)")
    if trained_on.shape != confidence.shape or trained_on.dtype != torch.bool:
        raise ValueError(
            f"trained_on: is {trained_on.dtype} of shape {list(trained_on.shape)}, expected bool "
            f"{list(confidence.shape)} as confidence"
        )
    if not confidence.isfinite().all():
        raise ValueError("confidence: has values that are NaN or infinite, expected finite confidences")
    inside = trained_on.cpu()
    fewest = torch.minimum(inside.sum(0), (~inside).sum(0))
    if int(fewest.min()) < FEWEST:
        sample = int(fewest.argmin())
        raise ValueError(
            f"trained_on: sample {sample} has {int(inside[:, sample].sum())} models with it of {len(inside)}, expected "
            f"at least {FEWEST} with it and {FEWEST} without"
        )
    p = confidence.cpu().double().sigmoid()
    (with_it, error, free), (without, other_error, other_free) = (_mean(p, chosen) for chosen in (inside, ~inside))
    score, square = with_it - without, error + other_error
    freedom = square.square() / (error.square() / free + other_error.square() / other_free)
    freedom = freedom.where(square > 0, 1.0)  # all models agree: the interval has no width
    quantile = torch.from_numpy(student.ppf((1 + CONFIDENCE_LEVEL) / 2, freedom.numpy()))
    margin = quantile * square.sqrt()
    return MemorizationScores(score, (score - margin).clamp(min=-1), (score + margin).clamp(max=1))


def _mean(p: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over the chosen models of each sample, its squared standard error, and the degrees of freedom of this."""
    count, mean, squares = moments(p, chosen)
    return mean, squares / (count - 1) / count, count - 1
