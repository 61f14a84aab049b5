"""unlearnx.nn's layers in place of torch's: same arguments, parameters, inputs and results, and derivatives of them."""

import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_sequence

import unlearnx.nn
from unlearnx.curvature import CurvatureOperator, fisher_diagonal
from unlearnx.curvature.rules.recurrent import _log_replacement

KINDS = [(nn.LSTM, unlearnx.nn.LSTM), (nn.GRU, unlearnx.nn.GRU)]
SETTINGS = [{}, dict(num_layers=2, bidirectional=True), dict(batch_first=True, bias=False), dict(bidirectional=True)]


def pair(kinds, **settings):
    """A layer of torch, and ours with its parameters, in float64."""
    torch.manual_seed(0)
    theirs, ours = (kind(3, 5, **settings).double() for kind in kinds)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def states(layer, rows):
    shape = (layer.num_layers * (1 + layer.bidirectional), *rows, layer.hidden_size)
    return (random(*shape), random(*shape)) if isinstance(layer, nn.LSTM) else random(*shape)


def flat(result):
    output, final = result
    data = output.data if isinstance(output, nn.utils.rnn.PackedSequence) else output
    return [data, *(final if isinstance(final, tuple) else (final,))]


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def assert_alike(theirs, ours, *args):
    """Same results, and same gradients of the parameters."""
    results = [flat(layer(*args)) for layer in (theirs, ours)]
    assert_same(*results)
    along = [torch.randn_like(t) for t in results[0]]
    layers = zip(results, (theirs, ours), strict=True)
    assert_same(*(torch.autograd.grad(r, list(layer.parameters()), along) for r, layer in layers))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kinds", KINDS)
def test_is_a_drop_in(kinds, settings):
    theirs, ours = pair(kinds, **settings)
    assert isinstance(ours, kinds[0])
    assert repr(ours) == repr(theirs)
    assert_alike(theirs, ours, random(4, 4, 3))
    assert_alike(theirs, ours, random(4, 4, 3), states(theirs, (4,)))
    assert_alike(theirs, ours, random(6, 3))
    assert_alike(theirs, ours, random(6, 3), states(theirs, ()))


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kinds", KINDS)
def test_packed(kinds, settings, in_order):
    theirs, ours = pair(kinds, **settings)
    lengths = [6, 4, 4, 1] if in_order else [1, 4, 6, 4]
    packed = pack_sequence([random(n, 3) for n in lengths], enforce_sorted=in_order)
    assert_alike(theirs, ours, packed)
    assert_alike(theirs, ours, packed, states(theirs, (4,)))
    mine, other = ours(packed)[0], theirs(packed)[0]
    assert torch.equal(mine.batch_sizes, other.batch_sizes)
    assert in_order or torch.equal(mine.sorted_indices, other.sorted_indices)


@pytest.mark.parametrize("kinds", KINDS)
def test_dropout(kinds):
    theirs, ours = pair(kinds, num_layers=2, dropout=0.5)
    x, results = random(4, 2, 3), []
    for layer in (theirs, ours):
        torch.manual_seed(1)
        results.append(flat(layer(x)))
    assert_same(*results)
    assert_alike(theirs.eval(), ours.eval(), x)


@pytest.mark.parametrize("kinds", KINDS)
def test_hessian_products(kinds):
    """Ours differentiated twice by autograd, against torch's on the CPU."""
    theirs, ours = pair(kinds, num_layers=2, bidirectional=True)
    packed = pack_sequence([random(n, 3) for n in (5, 3, 2)])
    products = []
    for layer in (theirs, ours):
        parameters = list(layer.parameters())
        loss = sum(t.sin().sum() for t in flat(layer(packed)))
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        products.append(torch.autograd.grad(gradient, parameters, [p.detach().cos() for p in parameters]))
    assert_same(*products)


def test_projections_are_refused():
    with pytest.raises(ValueError, match="proj_size is 2, expected 0"):
        unlearnx.nn.LSTM(3, 5, proj_size=2)
    with pytest.raises(ValueError, match="model: layer '0' has proj_size=2"):
        unlearnx.nn.twice_differentiable(nn.Sequential(nn.LSTM(3, 5, proj_size=2)))


class Reader(nn.Module):
    """Characters to classes, by both kinds of layers."""

    def __init__(self, **settings):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.lstm = nn.LSTM(3, 4, **settings)
        self.gru = nn.GRU(4 * (1 + self.lstm.bidirectional), 5)
        self.output = nn.Linear(5, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        hidden, _ = self.gru(self.lstm(self.embedding(x.T))[0])
        return self.scale * self.output(hidden[-1])


@pytest.fixture
def reader():
    torch.manual_seed(0)
    return Reader(num_layers=2, bidirectional=True).double()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randint(7, (6, 5)), torch.randint(3, (6,))


def test_twice_differentiable(reader, data):
    converted = unlearnx.nn.twice_differentiable(reader)
    assert type(reader.lstm) is nn.LSTM
    assert (type(converted.lstm), type(converted.gru), type(converted.output)) == (
        unlearnx.nn.LSTM,
        unlearnx.nn.GRU,
        nn.Linear,
    )
    assert all(a is b for a, b in zip(converted.parameters(), reader.parameters(), strict=True))
    assert converted.scale is reader.scale
    assert converted.state_dict().keys() == reader.state_dict().keys()
    torch.testing.assert_close(converted(data[0]), reader(data[0]))
    with torch.no_grad():
        reader.lstm.weight_hh_l1.mul_(2)
    torch.testing.assert_close(converted(data[0]), reader(data[0]))
    assert type(unlearnx.nn.twice_differentiable(reader.lstm)) is unlearnx.nn.LSTM


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_curvature_replaces_the_layers_itself(reader, data, kind, caplog):
    _log_replacement.cache_clear()
    vector = {name: torch.randn_like(p) for name, p in reader.named_parameters()}
    with caplog.at_level(logging.INFO, "unlearnx"):
        products = [
            CurvatureOperator(model, cross_entropy, data, kind=kind).matvec(vector)
            for model in (reader, unlearnx.nn.twice_differentiable(reader))
        ]
    assert [record.args for record in caplog.records] == [("lstm",), ("gru",)]
    assert_same(*(p.values() for p in products))
    if kind == "hessian":
        parameters = list(reader.parameters())
        gradient = torch.autograd.grad(cross_entropy(reader(data[0]), data[1]), parameters, create_graph=True)
        assert_same(products[0].values(), torch.autograd.grad(gradient, parameters, list(vector.values())))


def test_fisher_diagonal(reader, data):
    diagonals = [
        fisher_diagonal(model, partial(cross_entropy, reduction="none"), data)
        for model in (reader, unlearnx.nn.twice_differentiable(reader))
    ]
    assert_same(*(d.values() for d in diagonals))
