"""TOFU: questions and answers about authors that do not exist, which nothing but the training can have taught."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

QUESTIONS = 20  # about each author, one after the other
PERTURBED = ("retain_perturbed", "forget10_perturbed")  # files with paraphrases and wrong answers of some of ``full``


@dataclass(frozen=True)
class Question:
    """A question with its answer, and where they are known both in other words and wrong answers.

    Attributes:
        question, answer: as they are learned.
        paraphrased_question, paraphrased_answer: the same in other words; None where there are none.
        wrong: wrong answers, in the words of the paraphrased answer, or of the answer where there is none.
    """

    question: str
    answer: str
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    wrong: tuple[str, ...] = ()

    @property
    def pair(self) -> tuple[str, str]:
        """The question and the answer as they are learned."""
        return self.question, self.answer


@dataclass(frozen=True)
class Tofu:
    """The benchmark: 20 questions about each fictitious author, and others about what is true.

    Attributes:
        authors: the questions, by author.
        real_authors, world_facts: questions with wrong answers.
    """

    authors: list[list[Question]]
    real_authors: list[Question]
    world_facts: list[Question]


@dataclass(frozen=True)
class TofuSplit:
    """The questions of a study.

    Attributes:
        learned: those that the model is trained on.
        forget: those of them that are to be forgotten.
        validation: others of them, of as many authors, on which strengths are chosen.
        unseen: those about authors that the model is not trained on.
    """

    learned: list[Question]
    forget: list[Question]
    validation: list[Question]
    unseen: list[Question]

    @property
    def measured(self) -> list[Question]:
        """What stays and has wrong answers, without those on which strengths are chosen."""
        left_out = {*self.forget, *self.validation}
        return [question for question in self.learned if question.wrong and question not in left_out]


def load_tofu(folder: Path) -> Tofu:
    """Read TOFU from the files as they are published, or packed by gzip.

    Args:
        folder: has ``full.json``, ``retain_perturbed.json``, ``forget10_perturbed.json``,
            ``real_authors_perturbed.json`` and ``world_facts_perturbed.json`` (or ``.json.gz``), or a folder ``tofu``
            that does; one JSON object a line.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line is of another form, or questions are not 20 for each author.
    """
    place = folder / "tofu" if (folder / "tofu").is_dir() else folder
    full = list(_read(place, "full"))
    if not full or len(full) % QUESTIONS:
        raise ValueError(f"{place}: full has {len(full)} questions, expected {QUESTIONS} for each author")
    more = {q.pair: q for name in PERTURBED for q in _read(place, name)}
    questions = [more.get(q.pair, q) for q in full]
    return Tofu(
        [questions[i : i + QUESTIONS] for i in range(0, len(questions), QUESTIONS)],
        *(list(_read(place, f"{name}_perturbed")) for name in ("real_authors", "world_facts")),
    )


def split_tofu(tofu: Tofu, authors: int, percent: int) -> TofuSplit:
    """Some of the authors, half of them the first and half the last ones: there lie those with wrong answers.

    The last of them are forgotten, ``percent`` of the authors and at least one; as many of the first are for
    validation, but no more than half of the first ones that have wrong answers, so that some of these stay.

    Raises:
        ValueError: there are fewer authors, an odd number is wanted, or so many are forgotten that none is left.
    """
    if authors % 2 or not 4 <= authors <= len(tofu.authors):
        raise ValueError(f"authors is {authors}, expected an even number from 4 to {len(tofu.authors)}")
    if not 0 < percent < 50:
        raise ValueError(f"forget is {percent}, expected a percentage of the authors from 1 to 49")
    half, n = authors // 2, max(1, round(authors * percent / 100))
    first, between, last = tofu.authors[:half], tofu.authors[half:-half], tofu.authors[-half:]
    with_wrong = list(takewhile(lambda author: all(question.wrong for question in author), first))
    chosen = max(1, min(n, len(with_wrong) // 2))
    parts = [_joined(part) for part in (first + last, last[-n:], first[:chosen], between)]
    found = TofuSplit(*parts)
    for name, part in (("forget", found.forget), ("validation", found.validation), ("retain", found.measured)):
        if not part or not all(question.wrong for question in part):
            raise ValueError(
                f"forget is {percent}: of the {authors} authors the {name} set has questions without wrong answers, "
                "expected fewer percent to forget"
            )
    return found


def _joined(parts: list[list[Question]]) -> list[Question]:
    return [question for part in parts for question in part]


def _read(folder: Path, name: str) -> Iterator[Question]:
    files = [folder / f"{name}.json.gz", folder / f"{name}.json"]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{files[0]}: no such file, expected TOFU's {name}.json or {name}.json.gz")
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _question(json.loads(line), f"{file}, line {number}")
    except (json.JSONDecodeError, UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{file}: expected a JSON object a line, got something else ({error})") from error


def _question(record: Any, origin: str) -> Question:
    if not isinstance(record, Mapping) or not all(isinstance(record.get(key), str) for key in ("question", "answer")):
        raise ValueError(f"{origin}: expected an object with texts as 'question' and 'answer'")
    optional = [record.get(key) for key in ("paraphrased_question", "paraphrased_answer")]
    wrong = record.get("perturbed_answer", ())
    if not all(text is None or isinstance(text, str) for text in optional) or not (
        isinstance(wrong, (list, tuple)) and all(isinstance(text, str) for text in wrong)
    ):
        raise ValueError(f"{origin}: expected texts as paraphrases, and a list of texts as 'perturbed_answer'")
    question, answer = optional
    return Question(record["question"], record["answer"], question, answer, tuple(wrong))
