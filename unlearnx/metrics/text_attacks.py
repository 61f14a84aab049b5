"""Membership attacks on language models that hold a text's likelihood against something else than the text itself.

Without that, the mean log-probability (``min_k(..., share=1.0)``) calls a text learned that is merely simple.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._checks import known_as, shown
from unlearnx._data import Data
from unlearnx._labels import IGNORED
from unlearnx.metrics.language import mean_log_probability, of_texts


@checked
def zlib_attack(
    model: nn.Module,
    data: Data,
    texts: Sequence[str],
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Mean log-probability of each text over the bytes that zlib compresses it to, nats a byte, float64 (N,): high for
    training data.

    Args:
        model: a causal language model.
        data: its samples; see :mod:`unlearnx.metrics.language`.
        texts: the same as characters, of each sample the part that has labels.
        batch_size: texts in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.
        ignore_index: the label of tokens that are not scored.

    Raises:
        ValueError: `texts` are no texts, or not one for each sample; and as for
            :func:`unlearnx.metrics.answer_probability`.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021, section 5.2
    ("zlib": log-perplexity beside the entropy by zlib), as open-unlearning computes it.

    Example:
        >>> model, tokens = nn.Embedding(5, 5), torch.randint(5, (2, 12))
        >>> zlib_attack(model, (tokens, tokens), ["a text", "another one"]).shape
        torch.Size([2])
    """
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts is {shown(texts)}, expected a list of texts")
    found = of_texts(model, data, mean_log_probability, batch_size, autocast, ignore_index)
    if len(texts) != len(found):
        raise ValueError(f"texts: has {len(texts)} texts, expected {len(found)}, one for each sample of data")
    return found / torch.tensor([len(zlib.compress(text.encode())) for text in texts], dtype=torch.float64)


@checked
def reference_attack(
    model: nn.Module,
    reference: nn.Module,
    data: Data,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """By how much the model finds each text likelier than another model does, nats a token, float64 (N,): high for
    training data.

    It is the difference of the mean log-probabilities, as open-unlearning takes it. (The source takes the ratio of the
    log-perplexities.)

    Args:
        model: a causal language model.
        reference: one that was not trained on the texts, such as the model before it was fine-tuned.
        data: samples of both; see :mod:`unlearnx.metrics.language`.
        batch_size: texts in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the models' own dtype.
        ignore_index: the label of tokens that are not scored.

    Raises:
        ValueError: as for :func:`unlearnx.metrics.answer_probability`.

    Source: Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021, section 5.2
    (comparison with other models).

    Example:
        >>> model, tokens = nn.Embedding(5, 5), torch.randint(5, (2, 12))
        >>> reference_attack(model, model, (tokens, tokens)).tolist()
        [0.0, 0.0]
    """
    own = of_texts(model, data, mean_log_probability, batch_size, autocast, ignore_index)
    with known_as(model="reference"):
        return own - of_texts(reference, data, mean_log_probability, batch_size, autocast, ignore_index)
