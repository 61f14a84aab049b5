"""Questions and answers as samples, and work on texts in the order of their lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unlearnx.data import Text
from unlearnx.data.tofu import Question

PROMPT = "Question: {}\nAnswer:"

T = TypeVar("T")
R = TypeVar("R")


def some_of(
    questions: Sequence[Question], most: int, generator: torch.Generator, *, shuffled: bool = False
) -> list[Question]:
    """At most so many questions, drawn at random.

    They are in the order that they had, so that values by question can be read beside them, or `shuffled`: what is
    read batch by batch is then not ordered by author.
    """
    chosen = torch.randperm(len(questions), generator=generator)[:most].tolist()
    return [questions[i] for i in (chosen if shuffled else sorted(chosen))]


def text_of(question: str, answer: str) -> Text:
    """What is learned: the answer behind the question."""
    return Text(PROMPT.format(question), f" {answer}")


def in_order_of_length(
    items: Sequence[T], lengths: Sequence[int], size: int, work: Callable[[list[T]], Iterable[R]]
) -> list[R]:
    """What `work` makes of the items, given `size` at a time, those of similar lengths together: little is padded.

    Args:
        items: in any order, which that of the results is.
        lengths: of each.
        size: items at a time.
        work: gives a result for each of some items.
    """
    order = sorted(range(len(items)), key=lambda i: lengths[i])
    found: dict[int, R] = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        found.update(zip(chosen, work([items[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(items))]


def in_batches(tokens: Sequence[Tensor], filling: int) -> tuple[Tensor, Tensor]:
    """Prompts as a batch that generation goes on from, and its attention mask: padded at their beginnings."""
    masks = [torch.ones_like(row) for row in tokens]
    rows, mask = (
        pad_sequence(list(part), batch_first=True, padding_value=value, padding_side="left")
        for part, value in ((tokens, filling), (masks, 0))
    )
    return rows, mask
