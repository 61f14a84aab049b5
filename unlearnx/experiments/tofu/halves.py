"""A transformer in two parts: the first blocks, which stay as they are and run once, and those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._blocks import blocks_of
from unlearnx._checks import model_device
from unlearnx._copies import independent, lent
from unlearnx._modes import evaluating
from unlearnx.experiments.text_samples import Sample, padded
from unlearnx.experiments.tofu.texts import in_order_of_length
from unlearnx.methods.hidden_states import HiddenStates

BATCH_SIZE = 32  # texts in a pass through the first blocks
CLOSE = 1e-3  # of the scores of both ways through the model, which rounding alone sets apart


class Upper(nn.Module):
    """The last blocks of a language model and its head, on the hidden states that come from the first ones."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, input_ids: Tensor | None = None) -> Any:
        """The scores; tokens are not read, but tell that labels are those of the next position."""
        return self.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False)


class Halves:
    """Parts of a causal language model of HuggingFace.

    Args:
        model: with a list of blocks that take positions from outside, as Llama's do.
        trained: how many blocks are trained, from the last on, with the norm behind them; from the number of all blocks
            on, all weights are.

    Raises:
        ValueError: the model cannot be divided so.
    """

    def __init__(self, model: nn.Module, trained: int):
        self._model = model
        names = [name for name, _ in blocks_of(model)]
        if not names:
            raise ValueError("model: has no list of blocks, expected a transformer")
        self.blocks = len(names)
        self.frozen = max(0, self.blocks - trained)
        self._list = names[0].rpartition(".")[0]
        if self.frozen:
            self._lower = HiddenStates(model, names[self.frozen - 1])
            self._below = [independent(block).requires_grad_(False) for _, block in blocks_of(model)[: self.frozen]]
            self._check()

    def upper(self) -> nn.Module:
        """A copy of the part that is trained, whose parameters alone require gradients; in eval mode."""
        if not self.frozen:
            return independent(self._model).eval()
        twin = independent(self._model)
        _put_blocks(twin, self._list, list(twin.get_submodule(self._list).children())[self.frozen :])
        tied = [module.weight for module in (twin.get_input_embeddings(), twin.get_output_embeddings())]  # type: ignore[operator]
        for weight in tied:
            weight.requires_grad_(False)
        return Upper(twin).eval()

    def whole(self, upper: nn.Module) -> nn.Module:
        """The model with that upper part, sharing its parameters; what is below requires no gradients."""
        if not self.frozen:
            return upper
        twin = lent(upper.model)  # type: ignore[arg-type]
        _put_blocks(twin, self._list, [*self._below, *twin.get_submodule(self._list).children()])
        return twin.eval()

    def inputs(self, samples: list[Sample]) -> list[Sample]:
        """The samples as the upper part takes them: with the hidden states of the first blocks."""
        if not self.frozen:
            return samples
        device = model_device(self._model)

        def read(some: list[Sample]) -> Iterator[Sample]:
            x, _ = padded(some)
            states = lower(**{name: rows.to(device) for name, rows in x.items()}).cpu()
            for (own, labels), row in zip(some, states, strict=True):
                yield {**own, "inputs_embeds": row[: len(labels)].clone()}, labels

        with evaluating(self._lower) as lower, torch.no_grad():
            return in_order_of_length(samples, [len(labels) for _, labels in samples], BATCH_SIZE, read)

    def _check(self) -> None:
        """Refuse a model whose parts do not give its scores."""
        ids = torch.arange(1, 8).expand(2, -1)
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        samples = [
            ({"input_ids": row[: int(m.sum())], "attention_mask": m[: int(m.sum())]}, row[: int(m.sum())])
            for row, m in zip(ids, mask, strict=True)
        ]
        device = model_device(self._model)
        x = {name: t.to(device) for name, t in padded(self.inputs(samples))[0].items()}
        tokens = {name: x[name] for name in ("input_ids", "attention_mask")}
        upper = self.upper()
        with torch.no_grad(), evaluating(self._model) as model:
            parts = [model(**tokens).logits, upper(**x).logits, self.whole(upper)(**tokens).logits]
        counts = tokens["attention_mask"].bool()
        expected, *others = (scores[counts] for scores in parts)
        if not all(torch.allclose(scores, expected, rtol=CLOSE, atol=CLOSE) for scores in others):
            raise ValueError(
                f"blocks: the last {self.blocks - self.frozen} of the model's {self.blocks} blocks do not run by "
                "themselves; give the number of all blocks, which trains all weights"
            )


def _put_blocks(model: nn.Module, name: str, blocks: list[nn.Module]) -> None:
    """Give a model other blocks, and say so to all configurations within it."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(blocks))
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "num_hidden_layers"):
            module.config.num_hidden_layers = len(blocks)  # type: ignore[union-attr]
