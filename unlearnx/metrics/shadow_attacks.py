"""Membership attacks that judge each sample by models that are known to have seen it or not: U-LiRA and RMIA."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx._arguments import checked
from unlearnx._checks import check_above_zero, check_at_least_one, check_fraction, known_as
from unlearnx.metrics.lira import LiRA, auc_of, check_confidences, lira


@checked
def u_lira(
    confidence: Tensor,
    shadow_confidence: Tensor,
    shadow_unlearned: Tensor,
    unlearned: Tensor,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> LiRA:
    """The likelihood ratio attack on unlearning: tell, sample by sample, what was unlearned from what was never seen.

    :func:`lira` on models that all went through unlearning. Attacks on populations, such as :func:`mia`, ask whether
    the forget set as a whole looks like test data; a sample that was hard before and hard after passes them. This one
    compares a sample with itself: its confidences under shadow models that were trained with it and unlearned it, and
    under those that never saw it. An AUC of 0.5 means that the attack finds nothing.

    Args:
        confidence: logit confidences under the attacked model after unlearning, (M,), see
            :func:`unlearnx.metrics.logit_confidence`.
        shadow_confidence: those under S shadow models after unlearning, (S, M), as of
            :func:`unlearnx.metrics.unlearned_shadows`.
        shadow_unlearned: whether a shadow model was trained with a sample and unlearned it, bool (S, M); the others
            never saw it.
        unlearned: which samples the attacked model was trained with and unlearned, bool (M,).
        bootstrap: number of resamples for the interval of the AUC.
        seed: of the bootstrap.

    Raises:
        ValueError: shapes or dtypes do not fit, confidences are not finite, all samples or none were unlearned, or a
            sample lacks shadow models of either kind.

    Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", 2024,
    section 4 (U-LiRA); Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023.

    Example:
        >>> unlearned = torch.arange(40) < 20
        >>> shadow_unlearned = torch.rand(16, 40) < 0.5
        >>> shadows = torch.randn(16, 40) + shadow_unlearned  # a trace is left
        >>> u_lira(torch.randn(40) + unlearned, shadows, shadow_unlearned, unlearned, bootstrap=100).auc > 0.5
        True
    """
    with known_as(shadow_in="shadow_unlearned", members="unlearned"):
        found = lira(confidence, shadow_confidence, shadow_unlearned, unlearned, bootstrap=bootstrap, seed=seed)
    if not found.online:
        sample = int(shadow_unlearned.sum(0).argmin())
        raise ValueError(
            f"shadow_unlearned: no shadow model unlearned sample {sample}, expected some that did and some that never "
            "saw it"
        )
    return found


@checked
def rmia(
    probability: Tensor,
    reference_probability: Tensor,
    reference_in: Tensor,
    members: Tensor,
    population: Tensor,
    reference_population: Tensor,
    *,
    gamma: float = 2.0,
    a: float = 0.3,
    bootstrap: int = 2000,
    seed: int = 0,
) -> LiRA:
    """The robust membership attack with few reference models: a sample beside many others of the population.

    The score is the share of population samples z for which ``(p(x) / p_r(x)) / (p(z) / p_r(z)) >= gamma``, where p is
    the probability of the label under the attacked model and p_r its mean under reference models, with and without the
    sample alike. Where none of these saw a sample, the mean is estimated as ``((1 + a) p_out + 1 - a) / 2``.

    Args:
        probability: of the labels under the attacked model, (M,), in (0, 1].
        reference_probability: under R reference models, (R, M); one is enough.
        reference_in: whether a reference model was trained with a sample, bool (R, M).
        members: which samples the attack should call members, bool (M,).
        population: probabilities of Z samples that no model was trained on, (Z,).
        reference_population: the same under the reference models, (R, Z).
        gamma: how much likelier a sample has to be than another for this to count.
        a: of the estimate without models that saw a sample: 0 where that tells nothing of those that did, 1 where
            both agree.
        bootstrap: number of resamples for the interval of the AUC.
        seed: of the bootstrap.

    Returns:
        The scores, with AUC and its interval, and :meth:`LiRA.tpr`; ``online`` tells whether reference models saw
        samples; ``shared_variance`` is False.

    Raises:
        ValueError: shapes or dtypes do not fit, a probability is outside of (0, 1], or members are all or none.

    Source: Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024, equations 3, 4
    and 10.

    Example:
        >>> members, seen = torch.arange(40) < 20, torch.rand(2, 40) < 0.5
        >>> own, others = torch.where(members, 0.9, 0.5), torch.where(seen, 0.9, 0.5)
        >>> rmia(own, others, seen, members, torch.full((30,), 0.5), torch.full((2, 30), 0.5), gamma=1.1).auc > 0.6
        True
    """
    check_at_least_one(bootstrap=bootstrap)
    check_above_zero(gamma=gamma)
    check_fraction(a=a)
    with known_as(confidence="probability", shadow_confidence="reference_probability", shadow_in="reference_in"):
        check_confidences(probability, reference_probability, reference_in, members)
    if population.dim() != 1 or not len(population):
        raise ValueError(f"population: has shape {list(population.shape)}, expected (Z,), Z at least one")
    expected = [len(reference_probability), len(population)]
    if list(reference_population.shape) != expected:
        raise ValueError(
            f"reference_population: has shape {list(reference_population.shape)}, expected {expected}: reference "
            "models, and samples of population"
        )
    tables = {"probability": probability, "reference_probability": reference_probability}
    tables |= {"population": population, "reference_population": reference_population}
    for name, t in tables.items():
        if not ((t > 0) & (t <= 1)).all():
            raise ValueError(f"{name}: has values outside of (0, 1], expected probabilities")
    own, references, others, reference_others = (t.cpu().double() for t in tables.values())
    seen, members = reference_in.cpu(), members.cpu()
    out = references.where(~seen, 0).sum(0) / (~seen).sum(0).clamp(min=1)
    within = references.where(seen, 0).sum(0) / seen.sum(0).clamp(min=1)
    alike = (out + within) / 2
    alike = alike.where(seen.any(0) & (~seen).any(0), ((1 + a) * out + (1 - a)) / 2)
    alike = alike.where((~seen).any(0), within)  # every reference model saw it
    # Those that no model saw are in neither: their probabilities are those of "out".
    likely = ((1 + a) * reference_others.mean(0) + (1 - a)) / 2
    ratios, levels = own / alike, (gamma * others / likely).sort().values
    scores = torch.searchsorted(levels, ratios, right=True).double() / len(levels)
    auc, interval = auc_of(scores, members, bootstrap, seed)
    return LiRA(scores, members, auc, interval, bool(seen.any()), False)
