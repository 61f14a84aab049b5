"""Texts as samples of their own lengths, which are padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from unlearnx._data import as_dataset
from unlearnx._labels import IGNORED
from unlearnx.data import Text
from unlearnx.data.texts import tokens_and_labels

Sample = tuple[dict[str, Tensor], Tensor]  # by name (length, ...), and labels (length,)


def tokens_of(texts: Sequence[Text], tokenizer: Any, positions: int | None = None) -> list[Sample]:
    """The tokens of each text, without padding, and its labels.

    Args:
        texts: the texts.
        tokenizer: a fast tokenizer of transformers.
        positions: how many tokens the model can read; None for any number.

    Raises:
        ValueError: a text has more tokens than that; the message names its line. Otherwise as for
            :func:`unlearnx.data.tokenize`.
    """
    samples = []
    for text in texts:
        tokens, labels = tokens_and_labels(text, tokenizer)
        if positions is not None and len(tokens) > positions:
            raise ValueError(
                f"{text.origin}: has {len(tokens):,} tokens, expected at most {positions:,}, for which the model has "
                "positions; cut it into parts"
            )
        x = {"input_ids": torch.tensor(tokens), "attention_mask": torch.ones(len(tokens), dtype=torch.int64)}
        samples.append((x, torch.tensor(labels)))
    return samples


def padded(samples: Sequence[Sample]) -> Sample:
    """Samples as a batch: what is added at their ends counts nowhere."""
    x = {name: pad_sequence([own[name] for own, _ in samples], batch_first=True) for name in samples[0][0]}
    return x, pad_sequence([labels for _, labels in samples], batch_first=True, padding_value=IGNORED)


def dataset_of(samples: Sequence[Sample]) -> Dataset[Any]:
    """Samples as methods and measures read them, each batch padded to its longest text."""
    return as_dataset(DataLoader(_Listed(samples), collate_fn=padded))


class _Listed(Dataset[Sample]):
    def __init__(self, samples: Sequence[Sample]):
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> Sample:
        return self._samples[i]
