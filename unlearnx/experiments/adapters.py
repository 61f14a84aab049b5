"""Low-rank adapters of language models, by peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unlearnx._blocks import blocks_of
from unlearnx._extras import extra
from unlearnx._random import forked_random

ALPHA = 2  # of a fresh adapter, over its rank


def with_lora(model: nn.Module, rank: int, *, seed: int, blocks: int | None = None) -> Any:
    """The model with a fresh adapter of a rank on all linear layers within it; it does what it did before.

    With `blocks`, only the linear layers of so many blocks, from the last on, have it.

    Raises:
        ValueError: the model has an adapter.
        ImportError: peft is missing; it comes with ``unlearnx[lm]``.
    """
    with extra("lora", "peft", "lm"):
        import peft
    if isinstance(model, peft.PeftModel):
        raise ValueError("lora is given for a model that has an adapter, which is changed; expected one without")
    layers = "all-linear" if blocks is None else _linear_layers(model, blocks)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=ALPHA * rank, target_modules=layers)
    with forked_random(torch.device("cpu"), seed=seed):
        return peft.get_peft_model(model, config).eval()


def _linear_layers(model: nn.Module, blocks: int) -> list[str]:
    """Names of the linear layers of the last blocks."""
    return [
        f"{name}.{inner}"
        for name, block in blocks_of(model)[-blocks:]
        for inner, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
