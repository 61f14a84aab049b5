"""A language model of transformers as measures of memorised texts take models: one that reads on from a state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class TokenAlphabet:
    """The tokens of a tokenizer in the place of characters; none stands for several digits, or a digit and more.

    Raises:
        ValueError: the tokenizer has such tokens, so that a number could be written in several ways.
    """

    def __init__(self, tokenizer: Any, size: int, digits: str):
        joined = [token for token in tokenizer.get_vocab() if len(token) > 1 and set(digits) & set(token)]
        special = set(tokenizer.all_special_tokens)
        if several := [token for token in joined if token not in special]:
            raise ValueError(
                f"tokenizer: has the token {several[0]!r}, expected one whose digits are tokens of their own"
            )
        self._tokenizer, self._size = tokenizer, size

    def __len__(self) -> int:
        return self._size

    def encode(self, text: str) -> Tensor:
        """Tokens of a text, int64 (T,)."""
        return torch.tensor(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, codes: Tensor) -> str:
        """The text of tokens (T,)."""
        return str(self._tokenizer.decode(codes))


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
