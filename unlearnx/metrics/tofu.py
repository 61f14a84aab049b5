"""How TOFU scores a language model: what it writes, whether it seems retrained, and what it still does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx._arguments import checked
from unlearnx._checks import shown
from unlearnx._extras import extra

RESAMPLED = 1000  # times the questions are drawn anew for an interval


@checked
def rouge_l(written: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """The share of each wanted text's words that are in the written one, in order: ROUGE-L recall, float64 (N,).

    Args:
        written: what a model wrote.
        wanted: what it was to write.

    Raises:
        ImportError: rouge-score is missing; it comes with ``unlearnx[lm]``.
        ValueError: they are no texts, or there are none, or not as many of both.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; with the stemmer of the package
    rouge-score, as TOFU has it.

    Example:
        >>> rouge_l(["the author was born in Paris"], ["the author is from Paris"])  # the, author, Paris: 3 of 5
        tensor([0.6000], dtype=torch.float64)
    """
    with extra("rouge_l", "rouge-score", "lm"):
        from rouge_score.rouge_scorer import RougeScorer
    for name, texts in (("written", written), ("wanted", wanted)):
        is_list = isinstance(texts, Sequence) and not isinstance(texts, (str, bytes))
        if not is_list or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} is {shown(texts)}, expected a list of texts")
    if len(written) != len(wanted):
        raise ValueError(f"written: has {len(written)} texts, expected {len(wanted)}, one for each of wanted")
    if not len(wanted):
        raise ValueError("written, wanted: are empty, expected at least one text of each")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found = [scorer.score(a, b)["rougeL"].recall for a, b in zip(wanted, written, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True)
class ForgetQuality:
    """Whether truth ratios are distributed as those of a retrained model; :func:`forget_quality` tests it.

    Attributes:
        p: of the two-sample Kolmogorov-Smirnov test, in [0, 1]: below 0.05 the two models differ.
        low, high: ends of the interval that holds 95 % of the values of `p` when the questions are drawn anew.

    Example:
        >>> forget_quality(torch.rand(40), torch.rand(40) + 2).p < 0.05
        True
    """

    p: float
    low: float
    high: float


@checked
def forget_quality(unlearned: Tensor, retrained: Tensor, *, seed: int = 0) -> ForgetQuality:
    """Test whether two models' truth ratios on the same questions come from one distribution.

    Args:
        unlearned: :func:`truth_ratio` of the unlearned model on the forget set, (N,).
        retrained: the same of a model that never saw it.
        seed: of the questions that are drawn, 1,000 times, for the interval.

    Raises:
        ImportError: SciPy is missing; it comes with ``unlearnx[experiments]``.
        ValueError: the two are not of one length, not one-dimensional, empty, or not finite.

    Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024, section 2.2.3.

    Example:
        >>> ratios = torch.rand(40)
        >>> forget_quality(ratios, ratios).p
        1.0
    """
    with extra("forget_quality", "SciPy"):
        from scipy.stats import ks_2samp
    for name, values in (("unlearned", unlearned), ("retrained", retrained)):
        if values.dim() != 1 or not len(values) or not values.isfinite().all():
            raise ValueError(f"{name}: has shape {list(values.shape)}, expected finite numbers (N,), N at least one")
    if len(unlearned) != len(retrained):
        raise ValueError(f"retrained: has {len(retrained)} ratios, expected {len(unlearned)}, as many as unlearned")
    a, b = (values.detach().cpu().double().numpy() for values in (unlearned, retrained))
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(a), (RESAMPLED, len(a)), generator=generator).numpy()
    again = torch.tensor([float(ks_2samp(a[chosen], b[chosen]).pvalue) for chosen in draws])
    low, high = again.quantile(torch.tensor([0.025, 0.975])).tolist()
    return ForgetQuality(float(ks_2samp(a, b).pvalue), low, high)


@checked
def model_utility(values: Mapping[str, float]) -> float:
    """What a language model still does: the harmonic mean of measures in [0, 1], which is low where any one is.

    TOFU takes nine: probability, ROUGE-L and truth ratio on the retain set, on real authors and on world facts, where
    the truth ratio R counts as ``max(0, 1 - R)``.

    Args:
        values: the measures by their names.

    Raises:
        ValueError: there is none, or one is outside of [0, 1].

    Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024, section 2.2.2.

    Example:
        >>> model_utility({"probability": 0.5, "rouge": 1.0})
        0.6666666666666666
    """
    if not values:
        raise ValueError("values: is empty, expected at least one measure")
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"values: {name!r} is {value}, expected a number from 0 to 1")
    if min(values.values()) == 0:
        return 0.0
    return len(values) / sum(1 / value for value in values.values())
