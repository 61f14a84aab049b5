"""Adapters on a frozen model: exact, and nothing before the first of them is differentiated."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.curvature.test_transformers import MODELS, N, empirical
from unlearnx import losses
from unlearnx.curvature import CurvatureOperator, fisher_diagonal, per_sample_grad_difference

X, Y = torch.randn(N, 5, 8, dtype=torch.float64), torch.arange(N) % 3


class LowRank(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x):
        return self.layer(x) + 0.5 * F.linear(F.linear(x, self.down), self.up)


class Adapted(nn.Module):
    """Two frozen layers, two with adapters, and tokens that are put before the text."""

    def __init__(self, prefix):
        super().__init__()
        self.frozen = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)).requires_grad_(False)
        self.adapted = nn.ModuleList(LowRank(nn.Linear(8, 8).requires_grad_(False)) for _ in range(2))
        self.prefix = nn.Parameter(torch.randn(3, 8)) if prefix else None
        self.last = nn.Linear(8, 3).requires_grad_(False)
        self.differentiated = []

    def forward(self, x):
        for layer in self.frozen:
            x = torch.tanh(layer(x))
        self.differentiated.append(x.requires_grad)
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for layer in self.adapted:
            x = torch.tanh(layer(x))
        return self.last(x.mean(1))


@pytest.mark.parametrize("prefix", [False, True])
def test_by_hand(prefix):
    torch.manual_seed(0)
    model = Adapted(prefix).double()
    expected = empirical(model, X, Y, F.cross_entropy)
    model.differentiated.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = fisher_diagonal(model, F.cross_entropy, (X, Y), batch_size=4)
    assert not any(model.differentiated)
    assert list(got) == [name for name, p in model.named_parameters() if p.requires_grad]
    for name, t in got.items():
        torch.testing.assert_close(t, expected[name], rtol=1e-9, atol=1e-15)
    rows = per_sample_grad_difference(model, F.cross_entropy, (X, Y))
    for name, t in got.items():
        torch.testing.assert_close(rows[name].square().mean(0), t, rtol=1e-9, atol=1e-15)


def test_curvature():
    torch.manual_seed(0)
    model = Adapted(prefix=True).double()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    v = {name: torch.randn_like(p) for name, p in parameters.items()}
    gradient = torch.autograd.grad(F.cross_entropy(model(X), Y), list(parameters.values()), create_graph=True)
    expected = torch.autograd.grad(gradient, list(parameters.values()), list(v.values()))
    got = CurvatureOperator(model, F.cross_entropy, (X, Y), kind="hessian").matvec(v)
    for (name, t), e in zip(got.items(), expected, strict=True):
        torch.testing.assert_close(t, e, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_peft(name):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    settings, make = MODELS[name]
    torch.manual_seed(0)
    x, y, loss = make()
    model_class = getattr(transformers, name)
    layers = ["c_attn"] if name.startswith("GPT2") else ["q_proj", "v_proj"]
    lora = peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False, fan_in_fan_out=name.startswith("GPT2"))
    model = (
        peft.get_peft_model(model_class(model_class.config_class(**settings, use_cache=False)), lora).double().eval()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = fisher_diagonal(model, loss, (x, y), batch_size=4)
    assert loss is losses.causal_lm
    assert all("lora" in name for name in got)
    expected = empirical(model, x, y, loss)
    for key, t in got.items():
        torch.testing.assert_close(t, expected[key], rtol=1e-9, atol=1e-9 * float(expected[key].max()))
