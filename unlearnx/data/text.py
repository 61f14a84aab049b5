"""Text as characters: an alphabet, windows, and canaries, numbers inserted to see whether a model memorises them."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one

CANARY_SENTENCE = "`my telephone number is {number}!' said alice."
DIGITS = "0123456789"


def load_text(path: str | Path) -> str:
    r"""Read a UTF-8 text file in lower case, lines ending in "\n".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or not UTF-8.

    Example:
        >>> file = folder / "novel.txt"
        >>> length = file.write_text("Alice was beginning")
        >>> load_text(file)
        'alice was beginning'
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is not a file, expected a text file")
    try:
        text = path.read_text("utf-8-sig").lower()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 ({error.reason})") from error
    if not text.strip():
        raise ValueError(f"{path}: is empty, expected text")
    return text


class Alphabet:
    """The distinct characters of a text, sorted; a model reads the index of each, its code.

    Attributes:
        characters: the characters, each once.

    Raises:
        ValueError: the text is empty.

    Example:
        >>> alphabet = Alphabet("banana")
        >>> alphabet.characters, alphabet.decode(alphabet.encode("nab"))
        ('abn', 'nab')
    """

    def __init__(self, text: str):
        if not text:
            raise ValueError("text: is empty, expected at least one character")
        self.characters = "".join(sorted(set(text)))
        self._points = _code_points(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def __repr__(self) -> str:
        return f"Alphabet({self.characters!r})"

    def encode(self, text: str) -> Tensor:
        """Codes of a text's characters, int64 (len(text),).

        Raises:
            ValueError: a character is not in the alphabet; the message names it and its position.
        """
        points = _code_points(text)
        codes = np.searchsorted(self._points, points).clip(max=len(self) - 1)
        unknown = (self._points[codes] != points).nonzero()[0]
        if len(unknown):
            raise ValueError(
                f"character {text[unknown[0]]!r} at position {unknown[0]} is not one of the {len(self)} of the alphabet"
            )
        return torch.from_numpy(codes)

    def decode(self, codes: Tensor) -> str:
        """The text of codes (T,).

        Raises:
            ValueError: a code is out of range.
        """
        outside = (codes < 0) | (codes >= len(self))
        if outside.any():
            raise ValueError(f"codes: {int(codes[outside][0])} is out of range for {len(self)} characters")
        return "".join(self.characters[code] for code in codes.tolist())


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def windows(codes: Tensor, length: int = 24, step: int = 1) -> tuple[Tensor, Tensor]:
    """Windows of a text, and the character that follows each of theirs, as views: nothing is copied.

    Args:
        codes: the text, int64 (T,).
        length: characters in a window.
        step: characters from the beginning of a window to the beginning of the next.

    Returns:
        x (N, length) and y (N, length), N = (T - length - 1) // step + 1: ``y[i, t]`` is the character after
        ``x[i, t]``.

    Raises:
        ValueError: the text has no more than `length` characters.

    Example:
        >>> x, y = windows(torch.arange(7), length=3, step=3)
        >>> x.tolist(), y.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
    """
    check_at_least_one(length=length, step=step)
    if codes.dim() != 1 or len(codes) <= length:
        raise ValueError(f"codes: has shape {list(codes.shape)}, expected (T,), T > {length}")
    return codes[:-1].unfold(0, length, step), codes[1:].unfold(0, length, step)


@dataclass(frozen=True)
class Planted:
    """A text with a canary in it.

    Attributes:
        text: the text with the canary.
        number: the canary's number.
        positions: index of each occurrence of the number, ascending.

    Example:
        >>> planted = Planted("his number is 123, he said", "123", positions=(14,))
        >>> planted.replaced("???")
        'his number is ???, he said'
    """

    text: str
    number: str
    positions: tuple[int, ...]

    def replaced(self, replacement: str) -> str:
        """The text with each planted number replaced by other characters.

        Raises:
            ValueError: the replacement is not as long as the number.
        """
        if len(replacement) != len(self.number):
            raise ValueError(
                f"replacement: {replacement!r} has {len(replacement)} characters, expected {len(self.number)} as the "
                "number has"
            )
        parts, end = [], 0
        for position in self.positions:
            parts += [self.text[end:position], replacement]
            end = position + len(self.number)
        return "".join([*parts, self.text[end:]])


@dataclass(frozen=True)
class Canary:
    r"""A sentence with a number, to be inserted several times into a text, each time as a paragraph of its own.

    Args:
        number: the number, or any other characters.
        sentence: the text around it, with ``{number}`` where the number goes.
        repeats: how many times it is inserted.
        seed: of the choice of paragraph breaks.

    Raises:
        ValueError: the number is empty, or the sentence does not have ``{number}`` exactly once, after other text.

    Source: Carlini et al., "The Secret Sharer", USENIX Security 2019; sentence and insertion as in Warnecke et al.,
    "Machine Unlearning of Features and Labels", NDSS 2023, public code.

    Example:
        >>> canary = Canary("123", "my number is {number}!", repeats=1)
        >>> planted = canary.insert("She waited.\n\n  Then she left.\n\n  And he came.")
        >>> planted.text[planted.positions[0] :][:4], canary.prefix
        ('123!', 'my number is ')
    """

    number: str
    sentence: str = CANARY_SENTENCE
    repeats: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least_one(repeats=self.repeats)
        if not self.number:
            raise ValueError("number: is empty, expected at least one character")
        if self.sentence.count("{number}") != 1 or not self.prefix:
            raise ValueError(f"sentence is {self.sentence!r}, expected {{number}} exactly once, after other text")

    @classmethod
    def random(cls, length: int = 10, *, seed: int = 0, **settings: Any) -> Canary:
        """A canary whose number has `length` random digits; further arguments are those of the class."""
        check_at_least_one(length=length)
        # Not torch's generator: with the same seed, exposure would draw this number as its first candidate.
        return cls("".join(random.Random(seed).choices(DIGITS, k=length)), seed=seed, **settings)

    @property
    def prefix(self) -> str:
        """The sentence up to the number."""
        return self.sentence.partition("{number}")[0]

    def insert(self, text: str) -> Planted:
        r"""The text with the canary in it.

        A paragraph break is an empty line and the indentation of the next line, which begins with a letter or digit.
        The canary is inserted at random breaks with the most frequent indentation: headings and verse have another one.

        Raises:
            ValueError: the text has fewer such breaks than the canary has repeats.
        """
        found = [(match.end(), match[1]) for match in re.finditer(r"\n\n( *)(?=\w)", text)]
        indentation = Counter(spaces for _, spaces in found).most_common(1)[0][0] if found else ""
        breaks = [end for end, spaces in found if spaces == indentation]
        if len(breaks) < self.repeats:
            raise ValueError(f"repeats is {self.repeats}, expected at most {len(breaks)}, the text's paragraph breaks")
        drawn = torch.randperm(len(breaks), generator=torch.Generator().manual_seed(self.seed))[: self.repeats]
        paragraph = self.sentence.replace("{number}", self.number) + "\n\n" + indentation
        ends = sorted(breaks[i] for i in drawn.tolist())
        bounds = [0, *ends, len(text)]
        parts = [text[a:b] for a, b in pairwise(bounds)]
        positions = tuple(end + k * len(paragraph) + len(self.prefix) for k, end in enumerate(ends))
        return Planted(paragraph.join(parts), self.number, positions)
