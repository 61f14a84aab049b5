"""The kinds of models, samples, outputs and labels that every method is called on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models import odd_models as odd
from unlearnx._losses import Loss
from unlearnx.losses import binary_cross_entropy, cross_entropy, mse

N = 20


class Output(dict):
    """As models of HuggingFace return it."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Named(nn.Module):
    """Takes its inputs by name, and one that is left out by default."""

    def __init__(self):
        super().__init__()
        self.body = odd.network()

    def forward(self, values, scale=None):
        return self.body(values if scale is None else values * scale)


class Two(nn.Module):
    """Takes two inputs by position."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(2, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, left, right):
        return self.head((self.a(left) + self.b(right)).tanh())


class WithLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = odd.network()

    def forward(self, x):
        return Output(logits=self.body(x))


class Tagger(nn.Module):
    """A class for each token of a text, the scores as HuggingFace orders them: (N, length, classes)."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 5)

    def forward(self, input_ids):
        return Output(logits=self.head(self.embedding(input_ids).tanh()))


class SingleLogit(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.body(x).squeeze(1)


def adapted() -> nn.Module:
    """A frozen network with an adapter of peft that has been trained, which alone may change."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    return peft.get_peft_model(odd.network(), config)


def rows(*shape: int) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(0))


def classes() -> Tensor:
    return torch.arange(N) % 4


def tokens() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(10, (N, 6), generator=generator), torch.randint(5, (N, 6), generator=generator)
    labels[:, 4:] = -100
    labels[1] = -100  # a text of the forget set without any
    return {"input_ids": ids, "labels": labels}


@dataclass(frozen=True)
class Kind:
    """How a model is built, the samples that it takes, and the loss."""

    build: Callable[[], nn.Module]
    data: Callable[[], Any] = lambda: (rows(6), classes())
    loss_fn: Loss = F.cross_entropy
    needs: str | None = None  # a library

    def called(self, model: nn.Module) -> Any:
        """What the model returns for all samples."""
        data = self.data()
        if isinstance(data, dict):
            return model(**{name: t for name, t in data.items() if name != "labels"})
        return model(*data[0]) if isinstance(data[0], tuple) else model(data[0])


KINDS = {
    "pair": Kind(odd.network),
    "mapping": Kind(Named, lambda: {"values": rows(6), "scale": rows(1) + 2, "labels": classes()}),
    "tuple input": Kind(Two, lambda: ((rows(4), rows(2)), classes())),
    "`.logits`": Kind(WithLogits, loss_fn=cross_entropy),
    "tokens": Kind(Tagger, tokens, cross_entropy),
    "single logit": Kind(SingleLogit, lambda: (rows(6), (torch.arange(N) % 2).float()), binary_cross_entropy),
    "multi-label": Kind(odd.network, lambda: (rows(6), (rows(4) > 0).float()), F.binary_cross_entropy_with_logits),
    "regression": Kind(odd.network, lambda: (rows(6), rows(4)), mse),
    "`.view`": Kind(odd.View, lambda: (rows(3, 14, 14), classes())),
    "compiled": Kind(lambda: torch.compile(odd.network(), backend="aot_eager")),
    "`DataParallel`": Kind(lambda: nn.DataParallel(odd.network())),
    "old `weight_norm`": Kind(lambda: odd.used(odd.old_weight_norm())),
    "LoRA": Kind(adapted, needs="peft"),
}
