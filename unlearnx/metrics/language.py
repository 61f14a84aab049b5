"""What a language model makes of given texts: how likely they are, and how much of them it completes.

Data are those that the model is trained on: labels are the input tokens themselves, with `ignore_index` where none is
scored, as in prompts and padding; the scores at a position predict the token after it. Measures of a text depend on
that text alone, not on what else is in its batch, nor on the side of its padding where an attention mask tells it. They
are computed in float64 from the model's scores, in whatever precision it has these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._batches import Nest, scores
from unlearnx._checks import known_as, shown
from unlearnx._data import Data, as_dataset
from unlearnx._labels import IGNORED
from unlearnx._pairs import Pair
from unlearnx._sources import Changed
from unlearnx._wrappers import innermost
from unlearnx.metrics.outputs import each_batch

TINY = 1e-10  # as in the published code, where a ratio would divide by zero

# From the log-probabilities (T, V) of the next tokens of a text and those tokens (T,), T at least one.
OfText = Callable[[Tensor, Tensor], Tensor]


def of_texts(
    model: nn.Module,
    data: Data,
    measure: OfText,
    batch_size: int | None,
    autocast: torch.dtype | None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """The measure of each text, float64 (N, ...), on the CPU.

    Raises:
        ValueError: labels are no tokens, scores are of another shape, or a text has no label.
    """

    def each(output: Any, y: Nest) -> Tensor:
        values = scores(output)
        if not isinstance(y, Tensor) or y.is_floating_point() or values.dim() != 3 or y.shape != values.shape[:2]:
            what = f"{y.dtype} of shape {list(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise ValueError(
                f"data: labels are {what} with scores of shape {list(values.shape)}, expected tokens (N, length) and "
                "scores (N, length, tokens)"
            )
        following = y[:, 1:]
        counts = following != ignore_index
        if not counts.any(1).all():
            raise ValueError("data: a text has no label that counts, expected at least one token to score in each")
        return torch.stack(
            [
                measure(row[chosen].double().log_softmax(-1), tokens[chosen])
                for row, chosen, tokens in zip(values[:, :-1], counts, following, strict=True)
            ]
        ).cpu()

    return torch.cat(each_batch((model,), _placed(model, data), batch_size, autocast, each))


def _placed(model: nn.Module, data: Data) -> Data:
    """The data with places counted from each text's first token, for models that would count the padding before it."""
    if "position_ids" not in inspect.signature(innermost(model).forward).parameters:  # wrappers take whatever is given
        return data

    def place(x: Nest, y: Nest, index: Tensor) -> Pair:
        mask = x.get("attention_mask") if isinstance(x, dict) else None
        if not isinstance(mask, Tensor) or mask.dim() != 2 or "position_ids" in x:
            return x, y
        return {**x, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}, y

    return Changed(as_dataset(data), place)


def _at(log_p: Tensor, tokens: Tensor) -> Tensor:
    return log_p.gather(1, tokens[:, None]).squeeze(1)


def mean_log_probability(log_p: Tensor, tokens: Tensor) -> Tensor:
    """That of a text's tokens, in nats."""
    return _at(log_p, tokens).mean()


def completed(log_p: Tensor, tokens: Tensor) -> Tensor:
    """The share of a text that is completed without a fault; see :func:`extraction_strength`."""
    missed = (log_p.argmax(-1) != tokens).nonzero()
    return torch.tensor(1 - (int(missed.max()) + 1 if len(missed) else 0) / len(tokens), dtype=torch.float64)


def least_likely(share: float, normalised: bool) -> OfText:
    """The mean over a text's least likely tokens; see :func:`min_k`."""

    def least(log_p: Tensor, tokens: Tensor) -> Tensor:
        found = _at(log_p, tokens)
        if normalised:
            p = log_p.exp()
            mean = (p * log_p).nan_to_num().sum(-1)  # 0 log 0 is 0
            variance = (p * log_p.square()).nan_to_num().sum(-1) - mean.square()
            found = (found - mean) / variance.clamp(min=1e-6).sqrt()
        return found.sort().values[: max(1, int(share * len(found)))].mean()

    return least


def wrong_beside_right(right: Tensor, wrong: Tensor) -> Tensor:
    """Truth ratios (N,), of the probabilities of right answers (N,) and of wrong ones (answers, N)."""
    return wrong.log().mean(0).exp() / (right + TINY)


@checked
def answer_probability(
    model: nn.Module,
    data: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """The probability of each text to the power of one over its tokens, float64 (N,), in [0, 1].

    Args:
        model: a causal language model.
        data: its samples; see :mod:`unlearnx.metrics.language`.
        batch_size: texts in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        ignore_index: the label of tokens that are not scored.

    Raises:
        ValueError: the labels are not the tokens that scores are for, or a text has none.

    Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024, section 2.2.1.

    Example:
        >>> model, tokens = nn.Embedding(5, 5), torch.tensor([[0, 1, 2], [3, 4, -100]])
        >>> answer_probability(model, (tokens.clamp(min=0), tokens)).shape
        torch.Size([2])
    """
    return of_texts(model, data, mean_log_probability, batch_size, autocast, ignore_index).exp()


@checked
def truth_ratio(
    model: nn.Module,
    right: Data,
    wrong: Sequence[Data],
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """How likely wrong answers are beside the right one, float64 (N,): above 1 where the model prefers the wrong ones.

    The probabilities are those of :func:`answer_probability`; that of the wrong answers is their geometric mean, as in
    the published code of TOFU and open-unlearning. (Equation 1 of the paper has the arithmetic mean.)

    Args:
        model: a causal language model.
        right: the right answers to N questions, in other words than those that were learned.
        wrong: several sets of wrong answers to the same questions, in the same order.
        batch_size: texts in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        ignore_index: the label of tokens that are not scored.

    Raises:
        ValueError: there are no wrong answers, or not one for each right one; and as for :func:`answer_probability`.

    Source: Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024, section 2.2.2.

    Example:
        >>> model, (right, wrong) = nn.Embedding(5, 5), torch.randint(5, (2, 4, 3))
        >>> ratio = truth_ratio(model, (right, right), [(wrong, wrong)])
        >>> bool((ratio > 0).all())
        True
    """
    if not isinstance(wrong, Sequence) or not len(wrong):
        what = "empty" if isinstance(wrong, Sequence) else shown(wrong)
        raise ValueError(f"wrong is {what}, expected a list of at least one set of wrong answers")
    given: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast, "ignore_index": ignore_index}
    with known_as(data="right"):
        of_right = answer_probability(model, right, **given)
    others = []
    for i, one in enumerate(wrong):
        with known_as(data=f"wrong[{i}]"):
            others.append(answer_probability(model, one, **given))
        if len(others[-1]) != len(of_right):
            raise ValueError(
                f"wrong[{i}]: has {len(others[-1])} answers, expected {len(of_right)}, one for each of right"
            )
    return wrong_beside_right(of_right, torch.stack(others))


@checked
def extraction_strength(
    model: nn.Module,
    data: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """The share of each text that the model completes without a fault once it has what comes before, float64 (N,).

    It is ``1 - k / T`` of a text of T tokens, where from token k on every token is the most likely one; 0 where the
    last one is not. (open-unlearning leaves out the last token, which ends a text; give it `ignore_index` for that.
    Where the last one of the others is not the most likely it has 1 / T, and not the 0 of equation 6.)

    Args:
        model: a causal language model.
        data: its samples; see :mod:`unlearnx.metrics.language`.
        batch_size: texts in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        ignore_index: the label of tokens that are not scored.

    Raises:
        ValueError: as for :func:`answer_probability`.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021; Wang et al.,
    "Towards Effective Evaluations and Comparisons for LLM Unlearning Methods", ICLR 2025, equation 6.

    Example:
        >>> model, tokens = nn.Embedding.from_pretrained(torch.eye(5).roll(1, 1)), torch.tensor([[2, 0, 1, 2, 3]])
        >>> extraction_strength(model, (tokens, tokens))  # after the second token it counts on as the model does
        tensor([0.7500], dtype=torch.float64)
    """
    return of_texts(model, data, completed, batch_size, autocast, ignore_index)


@checked
def min_k(
    model: nn.Module,
    data: Data,
    *,
    share: float = 0.2,
    normalised: bool = False,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """The mean log-probability of each text's least likely tokens, float64 (N,): high for training data.

    With all tokens (``share=1``) it is minus the mean loss, the plainest of these attacks. (open-unlearning leaves
    out the last token, which ends a text, where `share` is less; give it `ignore_index` for that.)

    Args:
        model: a causal language model.
        data: its samples; see :mod:`unlearnx.metrics.language`.
        share: of the tokens, at least one.
        normalised: less the mean of all tokens' log-probabilities, in standard deviations, both under the model's own
            distribution ("Min-K%++"), instead of nats.
        batch_size: texts in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        ignore_index: the label of tokens that are not scored.

    Raises:
        ValueError: `share` is not above 0 and at most 1; and as for :func:`answer_probability`.

    Source: Shi et al., "Detecting Pretraining Data from Large Language Models", ICLR 2024; Zhang et al., "Min-K%++",
    ICLR 2025, equation 3.

    Example:
        >>> model, tokens = nn.Embedding(5, 5), torch.randint(5, (4, 12))
        >>> bool((min_k(model, (tokens, tokens)) <= min_k(model, (tokens, tokens), share=1.0)).all())
        True
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, expected a number above 0 and at most 1")
    return of_texts(model, data, least_likely(share, normalised), batch_size, autocast, ignore_index)
