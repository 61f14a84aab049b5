"""A language model of transformers as measures of memorised texts take models: one that reads on from a state."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]

BESIDE = ("", " ", "a", ".", '"')  # what a number may stand beside in a text


class TokenAlphabet:
    """The tokens of a tokenizer in the place of characters; it writes a digit as one that holds nothing else.

    That is asked of the tokenizer, not of the names of its tokens: those of single bytes, such as ``<0x00>``, have
    digits in them and stand for none.

    Raises:
        ValueError: it writes digits together, or one with what is beside it, so that a number has several forms.
    """

    def __init__(self, tokenizer: Any, size: int, digits: str):
        self._tokenizer, self._size, self._before = tokenizer, size, digits[0]
        own = {digit: self.encode(digit).tolist() for digit in digits}
        for a, b in product(digits, repeat=2):
            for beside in BESIDE:
                text = f"{beside}{a}{b}{beside}"
                written = self._tokens(text)
                if [*own[a], *own[b]] not in (written[i : i + 2] for i in range(len(written))):
                    parts = tokenizer.convert_ids_to_tokens(written)
                    raise ValueError(
                        f"tokenizer: writes {text!r} as {parts}, expected one whose digits are tokens of their own"
                    )

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> Tensor:
        """Tokens of a text, int64 (T,), without what some tokenizers put where a text begins."""
        before = self._tokens(self._before)
        return torch.tensor(self._tokens(self._before + text)[len(before) :])

    def decode(self, codes: Tensor) -> str:
        """The text of tokens (T,)."""
        return str(self._tokenizer.decode(codes))

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class TokenReader(nn.Module):
    """A causal language model as a :class:`unlearnx.metrics.CharacterModel`, of tokens.

    Args:
        model: of transformers, or peft's around one.
        alphabet: its tokens.
    """

    def __init__(self, model: nn.Module, alphabet: TokenAlphabet):
        super().__init__()
        self.model, self.alphabet = model, alphabet

    def advance(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read on; the state are keys and values of all layers, (layers, N, heads, length, features) each."""
        from transformers import DynamicCache

        known = DynamicCache()
        if state is not None:
            pairs: Any = tuple(zip(*(t.unbind(0) for t in state), strict=True))
            known = DynamicCache.from_legacy_cache(pairs)
        output = self.model(input_ids=x, past_key_values=known, use_cache=True)
        keys, values = zip(*output.past_key_values.to_legacy_cache(), strict=True)
        return output.logits.transpose(1, 2), (torch.stack(keys), torch.stack(values))
