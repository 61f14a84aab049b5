"""Experts, to which a router sends tokens of any sample: exact diagonals, and all of them by rules."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx.curvature import fisher_diagonal, per_sample_grad_dot
from unlearnx.curvature.places import Place
from unlearnx.curvature.scattered import Owners, Scattered, picked

N, T, D, EXPERTS, CLASSES = 7, 5, 6, 4, 3
RTOL = 1e-9


class Expert(nn.Module):
    """With a norm by hand, biases and a scale of its own."""

    def __init__(self):
        super().__init__()
        self.norm, self.scale = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(1))
        self.up, self.down, self.last = nn.Linear(D, 2 * 8), nn.Linear(8, D, bias=False), nn.LayerNorm(D)

    def forward(self, x):
        gate, up = self.up(self.norm * x).chunk(2, -1)
        return self.last(self.down(F.silu(gate) * up)) * self.scale


class Routed(nn.Module):
    """A layer of experts: its subclasses are ways to call them."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.head = nn.Linear(D, D), nn.Linear(D, EXPERTS, bias=False), nn.Linear(D, CLASSES)

    def forward(self, x):
        hidden = torch.tanh(self.first(x)).view(-1, D)
        weights, chosen = self.gate(hidden).softmax(-1).topk(2, -1)
        mixed = hidden + self.mixed(hidden, weights, chosen)
        return self.head(mixed.view(x.shape)).mean(1)


class Modules(Routed):
    """Experts as modules, every second one of which may get nothing, as Mixtral and OLMoE call them."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def mixed(self, hidden, weights, chosen):
        total = torch.zeros_like(hidden)
        mask = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            place, rows = torch.where(mask[number])
            state = hidden[None, rows].reshape(-1, D)
            total.index_add_(0, rows, expert(state) * weights[rows, place, None])
        return total


class Masked(Modules):
    """The same, with masks, on samples and positions in dimensions of their own."""

    def mixed(self, hidden, weights, chosen):
        hidden = hidden.view(-1, T, D)
        total = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            share = (weights * (chosen == number)).sum(-1).view(-1, T)
            mask = share > 0
            total[mask] = total[mask] + expert(hidden[mask]) * share[mask].unsqueeze(-1)
        return total.view(-1, D)


class Stacked(Routed):
    """The experts' weights stacked in one parameter, as newer models have them."""

    def __init__(self):
        super().__init__()
        self.up, self.up_bias = nn.Parameter(torch.randn(EXPERTS, D, 16)), nn.Parameter(torch.randn(EXPERTS, 16))
        self.down = nn.Parameter(torch.randn(EXPERTS, D, 8))

    def mixed(self, hidden, weights, chosen):
        total = torch.zeros_like(hidden)
        mask = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for number in torch.greater(mask.sum((-1, -2)), 0).nonzero():
            place, rows = torch.where(mask[number[0]])
            both = hidden.index_select(0, rows) @ self.up[number[0]] + self.up_bias[number[0]]
            state = F.linear(F.silu(both[..., ::2]) * both[..., 1::2], self.down[number[0]])
            total.index_add_(0, rows, state * weights[rows, place, None])
        return total


class Sorted(Stacked):
    """The rows of all experts picked at once, one expert's after the other's, and cut into theirs."""

    def mixed(self, hidden, weights, chosen):
        sorted_experts, order = chosen.flatten().sort()
        rows, counts = order // chosen.shape[1], torch.bincount(sorted_experts, minlength=EXPERTS).tolist()
        mixed = []
        for number, state in enumerate(hidden[rows].split(counts)):
            both = state @ self.up[number] + self.up_bias[number]
            mixed.append(F.linear(F.silu(both[..., ::2]) * both[..., 1::2], self.down[number]))
        return torch.zeros_like(hidden).index_add(0, rows, torch.cat(mixed) * weights.flatten()[order, None])


def loop(model, x, y):
    named = dict(model.named_parameters())
    rows = []
    for i in range(len(x)):
        value = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True))
    return {name: torch.stack(g) for name, g in zip(named, zip(*rows, strict=True), strict=True)}


def build(kind):
    torch.manual_seed(1)
    model = kind().double().eval()
    return model, torch.randn(N, T, D, dtype=torch.float64), torch.arange(N) % CLASSES


@pytest.mark.parametrize("kind", [Modules, Masked, Stacked, Sorted])
def test_every_expert_has_its_rule(kind):
    model, x, y = build(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=4)
        v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        products = per_sample_grad_dot(model, F.cross_entropy, (x, y), v, batch_size=4)
    rows = loop(model, x, y)
    for name, each in rows.items():
        torch.testing.assert_close(got[name], each.square().mean(0), rtol=RTOL, atol=1e-20)
    expected = sum((each * v[name]).flatten(1).sum(1) for name, each in rows.items())
    torch.testing.assert_close(products, expected, rtol=RTOL, atol=1e-12)


def test_experts_that_the_first_samples_do_not_need():
    """The rules are checked on three samples, none of which goes to the last expert."""
    model, x, y = build(Modules)
    with torch.no_grad():
        model.first.weight.copy_(torch.eye(D))
        model.first.bias.zero_()
        model.gate.weight.zero_()
        model.gate.weight[3, 0] = 9.0
        model.gate.weight[:3, 1:4] = torch.eye(3)
    x[:3, :, 0], x[3:, :, 0] = -1.0, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = fisher_diagonal(model, F.cross_entropy, (x, y))
    rows = loop(model, x, y)
    assert rows["experts.3.up.weight"][:3].count_nonzero() == 0 < rows["experts.3.up.weight"].count_nonzero()
    for name, each in rows.items():
        torch.testing.assert_close(got[name], each.square().mean(0), rtol=RTOL, atol=1e-20)


def test_rows_that_are_mixed_up_have_no_rule():
    """Functions that may change the order of rows are not followed: what comes after goes sample by sample."""

    class Reversed(Modules):
        def mixed(self, hidden, weights, chosen):
            rows = torch.where(chosen[:, 0] == 0)[0]
            state = self.experts[0](hidden[rows].flip(0)).flip(0)
            return torch.zeros_like(hidden).index_add_(0, rows, state)

    model, x, y = build(Reversed)
    with pytest.warns(UserWarning, match=r"no rule covers what the model does with 'experts\.0"):
        got = fisher_diagonal(model, F.cross_entropy, (x, y))
    for name, each in loop(model, x, y).items():
        torch.testing.assert_close(got[name], each.square().mean(0), rtol=RTOL, atol=1e-20)


def test_rows_in_their_samples():
    rows = torch.arange(8.0).view(4, 2)
    place = Scattered(axis=0, owners=Owners(torch.tensor([2, 0, 2, 0])))
    whole = place.first(rows, 3)
    assert whole.tolist() == [[[2, 3], [6, 7]], [[0, 0], [0, 0]], [[0, 1], [4, 5]]]
    assert torch.equal(place.first(rows[None], 3) if place.fits(rows[None], 3) else whole, whole)
    empty = Scattered(axis=1, owners=Owners(torch.empty(0, dtype=torch.int64)))
    assert empty.first(torch.empty(1, 0, 2), 3).shape == (3, 1, 1, 2)
    assert place != Place(0, folded=True)
    assert Owners(torch.tensor([1, 0])) == Owners(torch.tensor([1, 0])) != Owners(torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("index", "axis"),
    [
        (torch.tensor([1, 0]), 0),
        ((None, torch.tensor([1, 0])), 1),
        ((torch.tensor([1, 0]), torch.tensor([0, 2]), None), 0),
        (torch.tensor([True, False, True]), 0),
        ((torch.tensor([1, 0]), slice(None), torch.tensor([0, 2])), None),
        ((slice(None), torch.tensor([1, 0])), None),
        (torch.tensor([[1, 0]]), None),
        (torch.tensor(1), None),
        (2, None),
    ],
)
def test_calls_that_pick_rows(index, axis):
    pick = picked(torch.Tensor.__getitem__, (torch.zeros(3, 4, 5), index), {})
    assert (None if pick is None else pick.axis) == axis
    if pick is not None:
        assert torch.zeros(3, 4, 5)[index].shape[axis] == 2
