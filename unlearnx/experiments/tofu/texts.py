"""Questions and answers as samples of their own lengths, which are padded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from unlearnx._data import as_dataset
from unlearnx._labels import IGNORED
from unlearnx.data import Text, tokenize

PROMPT = "Question: {}\nAnswer:"

Sample = tuple[dict[str, Tensor], Tensor]  # by name (length, ...), and labels (length,)


def text_of(question: str, answer: str) -> Text:
    """What is learned: the answer behind the question."""
    return Text(PROMPT.format(question), f" {answer}")


def tokens_of(texts: Sequence[Text], tokenizer: Any) -> list[Sample]:
    """The tokens of each text, without padding, and its labels."""
    rows = tokenize(texts, tokenizer)
    lengths = rows["attention_mask"].sum(1).tolist()
    return [
        ({name: rows[name][i, :n].clone() for name in ("input_ids", "attention_mask")}, rows["labels"][i, :n].clone())
        for i, n in enumerate(lengths)
    ]


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


def in_batches(tokens: Sequence[Tensor], filling: int) -> tuple[Tensor, Tensor]:
    """Prompts as a batch that generation goes on from, and its attention mask: padded at their beginnings."""
    length = max(map(len, tokens))
    rows = torch.stack([torch.cat([row.new_full((length - len(row),), filling), row]) for row in tokens])
    mask = torch.stack([(torch.arange(length) >= length - len(row)).long() for row in tokens])
    return rows, mask
