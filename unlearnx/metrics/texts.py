"""How likely texts are to a causal language model, and how likely those are that it never saw."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unlearnx._data import Data, drawn
from unlearnx._labels import IGNORED, is_causal
from unlearnx._sources import Samples
from unlearnx.metrics.language import mean_log_probability, of_texts
from unlearnx.metrics.levels import Level, UnseenLevel
from unlearnx.metrics.shares import NORMAL_95

PASS = 8  # texts in one forward pass where the caller does not say: their scores take much memory
READ_AT_ONCE = 256  # texts
FEWEST = 10  # held-out texts, of which fewer do not tell how much losses differ


def are_texts(data: Data) -> bool:
    """Whether samples are texts whose tokens are their own labels; the first ones tell."""
    return is_causal(*Samples(data).read(slice(0, 2)))


def different(data: Data) -> int:
    """How many of some texts differ in what is learned of them: one that is there twice tells no more than once."""
    samples = Samples(data)
    parts = torch.arange(len(samples)).split(READ_AT_ONCE)
    return len({tuple(row[row != IGNORED].tolist()) for _, y in samples.batches(parts) for row in y})


def text_losses(
    model: nn.Module, data: Data, most: int, *, batch_size: int | None, autocast: torch.dtype | None, seed: int
) -> Tensor:
    """The mean loss of the tokens of each of at most so many texts, drawn at random, in nats, float64 (N,), on the CPU.

    Raises:
        ValueError: labels are no tokens, or a text has none.
    """
    some = drawn(data, most, torch.Generator().manual_seed(seed), batch_size)
    return -of_texts(model, some, mean_log_probability, batch_size or PASS, autocast, IGNORED)


def expected_loss(held_out: Tensor, texts: int) -> UnseenLevel:
    """The mean loss of so many texts that a model never saw, from those of held-out ones, (N,).

    Its 95 % interval is ``m +- 1.96 s sqrt(1 / texts + 1 / N)``: both sets are drawn at random from texts of one kind.
    """
    n = len(held_out)
    if n < FEWEST:
        said = (
            f"Of held-out texts there are {n}, which are too few to tell what a model does on texts that it never saw"
        )
        return UnseenLevel(None, None, None, f"{said}: expected at least {FEWEST}.")
    mean, spread = float(held_out.mean()), float(held_out.std())
    reach = NORMAL_95 * spread * math.sqrt(1 / texts + 1 / n)
    level = Level(mean, max(0.0, mean - reach), mean + reach)
    return UnseenLevel(None, None, level, f"This is the loss of {n:,} held-out texts.", of_held_out=True)
