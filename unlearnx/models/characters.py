"""A recurrent network that reads text character by character."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._checks import check_at_least_one
from unlearnx.data.text import Alphabet
from unlearnx.ops.lstm import plain_recurrence

State = tuple[Tensor, Tensor]


class CharacterLSTM(nn.Module):
    """Scores every character of an alphabet as the next one: an embedding, an LSTM, a linear layer.

    Args:
        alphabet: the characters that it knows, or a text that has them all.
        embedding: dimensions of the embedding.
        hidden: units in each layer.
        layers: number of LSTM layers.

    Attributes:
        alphabet: translates between text and codes.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, where one or two layers have 256 or
    512 units.

    Example:
        >>> model = CharacterLSTM("the alphabet of a text", hidden=8)
        >>> model(model.alphabet.encode("the")[None]).shape  # one text, scores of 11 characters, three positions
        torch.Size([1, 11, 3])
    """

    def __init__(self, alphabet: Alphabet | str, embedding: int = 64, hidden: int = 256, layers: int = 1):
        super().__init__()
        check_at_least_one(embedding=embedding, hidden=hidden, layers=layers)
        self.alphabet = Alphabet(alphabet) if isinstance(alphabet, str) else alphabet
        self.embedding = nn.Embedding(len(self.alphabet), embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, len(self.alphabet))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, V, T) for the character that follows each character of x, codes int64 (N, T)."""
        return self.advance(x)[0]

    def advance(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read on from a state; returns scores (N, V, T) like :meth:`forward`, and the state after the last character.

        Args:
            x: codes, int64 (N, T).
            state: (h, c), each (layers, N, hidden); None at the beginning of a text.
        """
        if torch.is_grad_enabled() or self.lstm.training or self.embedding.weight.dtype.itemsize < 4:
            features, state = self.lstm(self.embedding(x), state)
        else:
            features, state = self._read(x, state)
        return self.output(features).transpose(1, 2), state

    def _read(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Outputs and states of the LSTM; each character of the alphabet meets the input weights only once."""
        below: Tensor = self.embedding.weight
        finals, weights = [], [t for t in self.lstm._flat_weights if t is not None]
        for k in range(self.lstm.num_layers):
            w_ih, w_hh, b_ih, b_hh = weights[4 * k : 4 * k + 4]
            inputs = F.linear(below, w_ih, b_ih + b_hh)
            h, c = (None, None) if state is None else (state[0][k], state[1][k])
            hidden, cells = plain_recurrence(inputs if k else inputs[x.T], h, c, w_hh)
            below = hidden[1:]
            finals.append((hidden[-1], cells[-1]))
        after = [torch.stack(states) for states in zip(*finals, strict=True)]
        return below.transpose(0, 1), (after[0], after[1])


def last_character_loss(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the character after each window, (N,), in nats: the loss of the published study.

    Args:
        output: scores (N, V, T).
        y: the characters to predict, codes int64 (N, T); only the last one of each window counts.

    Example:
        >>> scores, following = torch.zeros(2, 4, 3), torch.zeros(2, 3, dtype=torch.long)  # all four alike
        >>> last_character_loss(scores, following)
        tensor([1.3863, 1.3863])
    """
    return F.cross_entropy(output[..., -1], y[:, -1], reduction="none")
