"""Answers that decline: what a language model is to prefer to an answer that it forgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unlearnx.data import Text, read_texts
from unlearnx.data.texts import ANSWERS

REFUSALS = ("I don't know.", "I'm not sure about that.", "I have no information on this.", "I can't answer that.")


def read_refusals(file: Path) -> list[str]:
    """The refusals of a file of JSON lines, ``{"text"}`` each.

    Raises:
        FileNotFoundError, ValueError: as for :func:`unlearnx.data.read_texts`, or a line is more than a text.
    """
    texts = read_texts(file)
    for text in texts:
        if text.prompt or text.messages:
            raise ValueError(f'{text.origin}: is an answer to something, expected a refusal alone, as "text"')
    return [text.answer for text in texts]


def refused(text: Text, refusal: str) -> Text:
    """The text with a refusal in the place of every answer, behind as much space as the answer has.

    Raises:
        ValueError: nothing is asked in it; the message names its line.
    """
    if text.messages:
        said = tuple((role, refusal if role == ANSWERS else content) for role, content in text.messages)
        return replace(text, messages=said)
    if not text.prompt:
        raise ValueError(
            f'{text.origin}: asks nothing that could be refused, expected "prompt" and "completion", or "messages"'
        )
    space = text.answer[: len(text.answer) - len(text.answer.lstrip())]
    return replace(text, answer=space + refusal)
