"""Representation misdirection against its formula, in float64, and what it does to classifiers and texts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx._data import materialize
from unlearnx.losses import causal_lm
from unlearnx.methods import RMU
from unlearnx.methods.hidden_states import HiddenStates, layer_of
from unlearnx.metrics import accuracy
from unlearnx.models import Training


def direction(width, seed=0):
    u = torch.rand(width, generator=torch.Generator().manual_seed(seed)).double()
    return u / u.norm()


@pytest.mark.parametrize("coefficient", [None, 6.5])
def test_objective(case, trained_on, coefficient):
    model, later, request, (fx, _), (rx, _) = case
    method = RMU(epochs=1, layer="1", coefficient=coefficient, weight=0.7)
    assert method(model, request).applied
    x, y = materialize(trained_on["data"])
    first, before = later[:2], model[:2]
    length = 5 * before(fx).norm(dim=1, keepdim=True) if coefficient is None else coefficient
    expected = (first(fx) - length * direction(8)).square().mean() + 0.7 * (first(rx) - before(rx)).square().mean()
    found = trained_on["loss_fn"](HiddenStates(later, "1")(x), y).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(5)])
        self.head = nn.Linear(8, 11)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_positions_without_labels_do_not_count(trained_on):
    torch.manual_seed(0)
    model, later = Texts().double().eval(), Texts().double().eval()
    tokens = torch.randint(11, (9, 6))
    labels = tokens.clone()
    labels[:, :2] = -100
    labels[1, 4:] = -100
    request = Request.remove((tokens, labels), [0, 1])
    assert RMU(epochs=1, loss_fn=causal_lm, weight=0.0, coefficient=2.0)(model, request).info["layer"] == "blocks.2"
    x, y = materialize(trained_on["data"])
    hidden = HiddenStates(later, "blocks.2")
    squares = (hidden(tokens[:2]) - 2.0 * direction(8)).square().mean(2)
    expected = (squares[0, 2:].mean() + squares[1, 2:4].mean()) / 2
    found = trained_on["loss_fn"](hidden(x), y).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_forgets_a_class_and_keeps_the_rest():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (600,), generator=generator)
    x = 3 * torch.eye(4, 8)[y] + torch.randn(600, 8, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    Training(40, lr=1e-2, batch_size=50).run(model.train(), (x[:400], y[:400]))
    model.eval()
    before = [p.clone() for p in model.parameters()]
    request = Request.remove_class((x[:400], y[:400]), 3)
    outcome = RMU()(model, request)
    assert outcome.applied, outcome.reason
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert accuracy(outcome.model, request.forget_set) < 0.25
    stays = y[400:] != 3
    assert accuracy(outcome.model, (x[400:][stays], y[400:][stays])) > 0.9


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layer": "7"}, "layer is '7', expected the name of a module"),
        ({"params": ["4.weight"], "layer": "1"}, "params: '4.weight' and all others come behind layer '1'"),
        ({"coefficient": -1.0}, "coefficient is -1.0"),
        ({"weight": -1.0}, "weight is -1.0"),
    ],
)
def test_clear_errors(settings, said):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    request = Request.remove((torch.randn(20, 4), torch.arange(20) % 2), [0, 1])
    with pytest.raises(ValueError, match=said):
        RMU(epochs=1, **settings)(model, request)


def test_layers():
    assert layer_of(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), None) == "0"
    assert layer_of(Texts(), None) == "blocks.2"
    with pytest.raises(ValueError, match="single layer"):
        layer_of(nn.Linear(3, 2), None)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(F.relu(self.used(x)))


def test_a_layer_that_is_not_called():
    request = Request.remove((torch.randn(20, 4), torch.arange(20) % 2), [0, 1])
    with pytest.raises(ValueError, match="layer is 'unused', which the model did not call"):
        RMU(epochs=1)(Unused(), request)
