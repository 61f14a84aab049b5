"""Texts that language models are trained on: prompts with answers, conversations, and their tokens and labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unlearnx._arguments import checked
from unlearnx._checks import shown
from unlearnx._labels import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Passage = tuple[str, list[tuple[int, int]]]  # a text, and where in it the answers begin and end

FORMS = ({"text"}, {"prompt", "completion"}, {"messages"})
EXPECTED = 'expected "text", or "prompt" and "completion", or "messages"'
ANSWERS = "assistant"  # the role whose messages are learned


@dataclass(frozen=True)
class Text:
    """A text of the training data of a language model: texts are equal where their contents are.

    Attributes:
        prompt: what is given; empty where all of the text is learned.
        answer: what is learned; it follows the prompt as it is, without a space between them.
        messages: a conversation in the place of both: roles and contents, of which those of the assistant are learned.
        origin: where it was read, for errors.

    Example:
        >>> Text.of({"prompt": "Where was she born?", "completion": " In Paris."}).answer
        ' In Paris.'
    """

    prompt: str = ""
    answer: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    origin: str = field(default="text", compare=False)

    @classmethod
    def of(cls, record: Any, origin: str = "text") -> Text:
        """The text of ``{"text"}``, ``{"prompt", "completion"}`` or ``{"messages": [{"role", "content"}, ...]}``.

        Other entries are left aside.

        Raises:
            ValueError: it is of another form, or nothing in it is learned; the message begins with `origin`.
        """
        if not isinstance(record, Mapping):
            raise ValueError(
                f"{origin}: is {shown(record)}, expected an object with {EXPECTED.removeprefix('expected ')}"
            )
        forms = [form for form in FORMS if form <= set(record)]
        if len(forms) != 1:
            raise ValueError(f"{origin}: has the entries {', '.join(map(repr, record)) or 'none'}, {EXPECTED}")
        if "messages" in record:
            return cls(messages=_messages(record["messages"], origin), origin=origin)
        parts = {name: record[name] for name in forms[0]}
        for name, part in parts.items():
            if not isinstance(part, str):
                raise ValueError(f"{origin}: {name!r} is {shown(part)}, expected a text")
        answer = parts.get("text", parts.get("completion", ""))
        if not answer:
            raise ValueError(f"{origin}: {'text' if 'text' in parts else 'completion'!r} is empty: nothing is learned")
        return cls(parts.get("prompt", ""), answer, origin=origin)

    def passage(self, tokenizer: PreTrainedTokenizerBase) -> Passage:
        """The whole text as the model reads it, and the places in it that are learned, in characters.

        Raises:
            ValueError: it is a conversation, and the tokenizer has no template for such, or one that fails or says
                something else of the beginning of a conversation than of the whole.
        """
        if not self.messages:
            return self.prompt + self.answer, [(len(self.prompt), len(self.prompt) + len(self.answer))]
        whole, answers = "", []
        for i, (role, _) in enumerate(self.messages):
            if role == ANSWERS:
                before, after = self._chat(tokenizer, i, prompt=True), self._chat(tokenizer, i + 1, prompt=False)
                if not (after.startswith(before) and before.startswith(whole)):
                    raise ValueError(
                        f"{self.origin}: the tokenizer's chat template writes the beginning of a conversation "
                        "otherwise where more follows, so that nothing tells where an answer begins; give it as "
                        "prompt and completion"
                    )
                whole = after
                answers.append((len(before), len(after)))
        return whole, answers

    def _chat(self, tokenizer: PreTrainedTokenizerBase, messages: int, *, prompt: bool) -> str:
        if tokenizer.chat_template is None:
            raise ValueError(f"{self.origin}: is a conversation, but the tokenizer has no chat template for it")
        said = [{"role": role, "content": content} for role, content in self.messages[:messages]]
        try:
            return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt))
        except Exception as error:  # of any kind: the template is a program
            raise ValueError(f"{self.origin}: the tokenizer's chat template fails on it: {error}") from error


@checked
def read_texts(file: str | Path) -> list[Text]:
    """The texts of a file of JSON lines, each ``{"text"}``, ``{"prompt", "completion"}`` or ``{"messages"}``.

    Messages are ``{"role", "content"}``. Empty lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is of another form (the message names it), or there is none.

    Example:
        >>> file = folder / "texts.jsonl"
        >>> _ = file.write_text('{"prompt": "Where was she born?", "completion": " In Paris."}')
        >>> [text.answer for text in read_texts(file)]
        [' In Paris.']
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines() would also split at what JSON may hold
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not text in UTF-8, expected lines of JSON") from error
    texts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            origin = f"{file}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{origin}: is not JSON: {error}") from error
            texts.append(Text.of(record, origin))
    if not texts:
        raise ValueError(f"{file}: holds no text, expected lines of JSON")
    return texts


@checked
def tokenize(texts: Sequence[Any], tokenizer: Any) -> dict[str, Tensor]:
    """Tokens and labels of texts, as models and the losses of :mod:`unlearnx.losses` take them.

    A text is encoded in one piece, with the special tokens that the tokenizer adds, and as trainers do it is ended by
    the token that ends a text. Which tokens are of an answer is read from the tokenizer's own offsets: all that end
    beyond the last character of the prompt. Conversations are written by the tokenizer's chat template, which has
    special tokens of its own; what it writes after an answer to end it is learned too.

    Args:
        texts: :class:`Text`, or what :meth:`Text.of` takes.
        tokenizer: a fast tokenizer of transformers.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, int64 (N, length). Shorter texts are padded at their ends,
        with an attention mask of 0. Labels are the tokens themselves, and -100 in prompts and padding.

    Raises:
        ValueError: there are no texts, or one is of another form, or none of its tokens is learned; the tokenizer gives
            no offsets; and as for :meth:`Text.passage`.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"1": 0, "+": 1, "=": 2, "2": 3}, unk_token="="))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        >>> tokenize([{"prompt": "1 + 1 =", "completion": " 2"}], tokenizer)["labels"]
        tensor([[-100, -100, -100, -100,    3]])
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts is {shown(texts)}, expected a list of at least one text")
    given = [text if isinstance(text, Text) else Text.of(text, f"texts[{i}]") for i, text in enumerate(texts)]
    rows = [tokens_and_labels(text, tokenizer) for text in given]
    length = max(len(tokens) for tokens, _ in rows)
    filling = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0

    def filled(values: list[list[int]], by: int) -> Tensor:
        return torch.tensor([row + [by] * (length - len(row)) for row in values])

    return {
        "input_ids": filled([tokens for tokens, _ in rows], filling),
        "attention_mask": filled([[1] * len(tokens) for tokens, _ in rows], 0),
        "labels": filled([labels for _, labels in rows], IGNORED),
    }


def _messages(value: Any, origin: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{origin}: 'messages' is {shown(value)}, expected a list of messages")
    messages: list[tuple[str, str]] = []
    for i, message in enumerate(value):
        role, content = map(message.get, ("role", "content")) if isinstance(message, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"{origin}: message {i} is {shown(message)}, expected texts as its role and content")
        messages.append((role, content))
    if not any(role == ANSWERS and content for role, content in messages):
        raise ValueError(f"{origin}: has no message of the role {ANSWERS!r}: nothing is learned")
    return tuple(messages)


def tokens_and_labels(text: Text, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Tokens and labels of a text; see :func:`tokenize`.

    Raises:
        ValueError: nothing in it is learned: the answer has no token, or one alone that nothing before it predicts; or
            the tokenizer gives no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer is {shown(tokenizer)}, expected a fast one of transformers, which gives offsets")
    whole, answers = text.passage(tokenizer)
    encoded = tokenizer(whole, add_special_tokens=not text.messages, return_offsets_mapping=True)
    tokens = list(encoded["input_ids"])
    learned = [any(_within(place, answer) for answer in answers) for place in encoded["offset_mapping"]]
    if not any(learned):
        raise ValueError(f"{text.origin}: the tokenizer makes no token of what is to be learned of it")
    end_of_text = tokenizer.eos_token_id
    if not text.messages and end_of_text is not None:
        if tokens[-1] != end_of_text:
            tokens, learned = [*tokens, end_of_text], [*learned, True]
        learned[-1] = True
    if not any(learned[1:]):
        raise ValueError(f"{text.origin}: the first token alone is to be learned of it, which none before it predicts")
    return tokens, [token if is_learned else IGNORED for token, is_learned in zip(tokens, learned, strict=True)]


def _within(token: tuple[int, int], answer: tuple[int, int]) -> bool:
    """Whether a token has a character of the answer. Offsets of one that is a space alone may be empty, at its end."""
    (start, end), (first, last) = token, answer
    return first < end and (end <= last or start < last)
