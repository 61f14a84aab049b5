"""Baselines of the field's tables: their formulas, and what they do to a network that has learned the digits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import network_that_knows_digits
from unlearnx import Request, losses
from unlearnx._data import batches, materialize
from unlearnx.data import load_digits
from unlearnx.methods import CT, MSG, UNSIR, BoundaryShrink, FineTune, JiT, L1Sparse, RandomLabels, SalUn, WoodFisher
from unlearnx.methods.jit import _Steepness
from unlearnx.methods.training_method import pulled_to_zero
from unlearnx.metrics import accuracy


@pytest.fixture(scope="module")
def digits():
    model, s = network_that_knows_digits()
    return model, Request.remove_class((s.train_x, s.train_y), 1), (s.test_x, s.test_y)


@pytest.mark.parametrize(
    "method", [UNSIR(), BoundaryShrink(), RandomLabels(), WoodFisher()], ids=lambda m: type(m).__name__
)
def test_a_class_is_forgotten_with_nothing_tuned(digits, method):
    model, request, (x, y) = digits
    before = copy.deepcopy(model.state_dict())
    outcome = method(model, request)
    assert outcome.applied, outcome.reason
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert accuracy(outcome.model, request.forget_set) < 0.1
    stays = y != 1
    assert accuracy(outcome.model, (x[stays], y[stays])) > 0.9


@pytest.mark.parametrize(
    "loss_fn", [F.cross_entropy, losses.cross_entropy, lambda output, y: -(y * output.log_softmax(1)).sum(1)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_probabilities_of_classes_move_to_others(loss_fn, smoothing, monkeypatch):
    """One-hot rows are no answers of yes and no to each class where the loss takes a softmax."""
    seen = []
    own = RandomLabels._other_labels

    def spy(self, example, index, labels):
        seen.append((labels, own(self, example, index, labels)))
        return seen[-1][1]

    monkeypatch.setattr(RandomLabels, "_other_labels", spy)
    x, classes = torch.randn(30, 6), torch.arange(30) % 4
    y = F.one_hot(classes, 4) * (1 - smoothing) + smoothing / 4
    SalUn(epochs=1, max_increase=9.0, loss_fn=loss_fn)(torch.nn.Linear(6, 4), Request.remove((x, y), range(9)))
    for before, after in seen:
        torch.testing.assert_close(after.sort(1).values, before.sort(1).values)
        assert (after.argmax(1) != before.argmax(1)).all()
    answers = RandomLabels(epochs=1, loss_fn=F.binary_cross_entropy_with_logits, max_increase=9.0)
    answers(torch.nn.Linear(6, 4), Request.remove((x, F.one_hot(classes, 4).float()), range(9)))
    before, after = seen[-1]
    assert torch.equal(after, 1 - before)


def test_random_labels_are_salun_on_all_weights(digits):
    model, request, _ = digits
    a = RandomLabels(epochs=1)(model, request).model.state_dict()
    b = SalUn(epochs=1, ratio=1.0)(model, request).model.state_dict()
    plain = RandomLabels(epochs=1, weight_decay=0.0)(model, request).model.state_dict()
    assert all(torch.equal(plain[name], b[name]) for name in b)
    assert any(not torch.equal(a[name], b[name]) for name in b), "the decay of weights is RandomLabels' own"


def test_the_pull_to_zero_falls_linearly():
    model = nn.Linear(3, 2).double()
    names = ["weight"]
    x = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    with pulled_to_zero(model, names, 0.3, 4):
        for left in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
            model.zero_grad()
            model(x).square().mean().backward()
            torch.testing.assert_close(model.weight.grad, expected[0] + 0.3 * left * model.weight.sign())
            torch.testing.assert_close(model.bias.grad, expected[1])
    model.zero_grad()
    model(x).square().mean().backward()
    torch.testing.assert_close(model.weight.grad, expected[0])


def test_sparse_training_keeps_accuracy_with_smaller_weights(digits):
    model, request, _ = digits
    dense, sparse = (m(model, request).model for m in (FineTune(epochs=3), L1Sparse(epochs=3, gamma=1e-3)))
    weights = [sum(float(p.detach().abs().sum()) for p in m.parameters()) for m in (dense, sparse)]
    assert weights[1] < 0.95 * weights[0]
    assert accuracy(sparse, request.target) > 0.97


def test_the_nearest_wrong_class_by_a_loop(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 4
    found = {}

    def keep(self, work, info, epochs, lr, *, data=None, **_):
        found["y"] = torch.cat([labels for _, labels in batches(data)])
        for p in work.model.parameters():
            p.data += 1e-9

    monkeypatch.setattr("unlearnx.methods.training_method.TrainedMethod._train", keep)
    request = Request.remove((x, y), range(12))
    BoundaryShrink(epochs=1, bound=0.5)(model, request)
    deviation = x[:12].std(correction=0)
    for i in range(12):
        own = x[i : i + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(own), y[i : i + 1]), own)
        scores = model(own + 0.5 * deviation * gradient.sign())[0].tolist()
        others = [(score, c) for c, score in enumerate(scores) if c != int(y[i])]
        assert int(found["y"][i]) == max(others)[1]


def test_steepness_of_a_linear_model():
    """It is the length of W e for a random direction e: between the least and the greatest singular value."""
    model = nn.Linear(6, 4)
    x = torch.randn(50, 6)
    torch.manual_seed(3)
    found = _Steepness(model, 0.5, 1)(x)
    torch.manual_seed(3)
    noise = 0.5 * torch.randn_like(x)
    torch.testing.assert_close(found, (noise @ model.weight.T).norm(dim=1) / noise.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_jit_makes_the_model_smooth_where_it_forgets(digits):
    model, _, _ = digits
    s = load_digits()
    request = Request.remove((s.train_x, s.train_y), range(50))
    outcome = JiT(epochs=10, max_increase=5.0)(model, request)
    x, _ = materialize(request.forget_set)

    def steep(m):
        torch.manual_seed(0)
        return float(_Steepness(m, 0.5, 8)(x).mean())

    assert steep(outcome.model.eval()) < 0.9 * steep(model)


def test_noise_is_what_the_model_knows_least(digits, monkeypatch):
    model, request, _ = digits
    seen = {}
    original = UNSIR._learned

    def keep(self, work):
        seen["noise"] = original(self, work)
        return seen["noise"]

    monkeypatch.setattr(UNSIR, "_learned", keep)
    UNSIR(epochs=1)(model, request)
    x, y = materialize(seen["noise"])
    with torch.no_grad():
        learned, random = (F.cross_entropy(model(t), y) for t in (x, torch.randn_like(x)))
    assert (y == 1).all()
    assert learned > 2 * random


def test_unsir_trains_on_a_part_of_what_stays():
    torch.manual_seed(0)
    x, y = torch.randn(60, 8), torch.arange(60) % 3
    model, request = nn.Linear(8, 3), Request.remove_class((x, y), 2)
    settings = {"epochs": 1, "noise": 5, "repeats": 2, "max_increase": 9.0}
    found = [UNSIR(**settings, retained=n)(model, request) for n in (12, 40, None)]
    assert [outcome.gradient_evaluations for outcome in found] == [200 + 10 + 2 * n for n in (12, 40, 40)]
    assert not torch.equal(found[0].model.weight, found[1].model.weight)
    with pytest.raises(ValueError, match="retained is 0, expected at least 1"):
        UNSIR(retained=0)


def test_msg_resets_the_weights_that_nothing_pulls_at():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 4
    request = Request.remove((x, y), range(10))
    outcome = MSG(epochs=1, lr=0.0, ratio=0.25, max_increase=99.0)(model, request)
    losses = F.cross_entropy(model(x[10:]), y[10:]) - F.cross_entropy(model(x[:10]), y[:10])
    pull = torch.autograd.grad(losses, [model[0].weight, model[2].weight])
    for i, g in zip((0, 2), pull, strict=True):
        moved = (outcome.model[i].weight != model[i].weight).flatten()
        least = set(g.abs().flatten().argsort()[: g.numel() // 4].tolist())
        assert set(moved.nonzero().flatten().tolist()) == least
        assert torch.equal(outcome.model[i].bias, model[i].bias)


def published_wood_fisher(v, gradients, n):
    """The recursion of the public code, with whole vectors."""
    k, o = v.clone(), gradients[0].clone()
    for g in gradients[1:]:
        product = torch.dot(o, g)
        k -= torch.dot(k, g) / (n + product) * o
        o -= product / (n + product) * o
    return k


@pytest.mark.parametrize("n", [5, 28, 1000])
@pytest.mark.parametrize("corrects", [False, True])
def test_wood_fisher_by_the_recursion_of_the_code(n, corrects):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 4
    new = torch.where(torch.arange(40) < 10, (y + 1) % 4, y)

    def gradient(x, y):
        parts = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        return torch.cat([g.flatten() for g in parts])

    v = (gradient(x[:10], y[:10]) - gradient(x[10:], y[10:])) * 10 / 40
    stays = range(10, 40)
    if corrects:
        v, stays = (gradient(x[:10], y[:10]) - gradient(x[:10], new[:10])) * 10 / 40, range(40)
    order = list(stays)
    if len(order) > n + 2:
        shuffled = torch.randperm(len(order), generator=torch.Generator().manual_seed(3))
        order = [order[i] for i in shuffled[: n + 2]]
    labels = new if corrects else y
    k = published_wood_fisher(v, [gradient(x[i : i + 1], labels[i : i + 1]) for i in order], n)
    request = Request.correct((x, y), (x, new)) if corrects else Request.remove((x, y), range(10))
    outcome = WoodFisher(2.0, n, seed=3, max_increase=99.0)(model, request)
    moved = [a - b for a, b in zip(outcome.model.parameters(), model.parameters(), strict=True)]
    torch.testing.assert_close(torch.cat([t.flatten() for t in moved]), 2 * k)


@pytest.mark.parametrize("method", [MSG(epochs=6, lr=2e-3), CT(epochs=6, lr=2e-3)], ids=lambda m: type(m).__name__)
def test_what_stays_heals_after_the_damage(digits, method):
    model, request, (x, y) = digits
    outcome = method(model, request)
    assert outcome.applied, outcome.reason
    stays = y != 1
    assert accuracy(outcome.model, (x[stays], y[stays])) > 0.95
    assert accuracy(outcome.model, request.forget_set) < accuracy(model, request.forget_set)


def test_a_round_that_is_undone_is_damaged_again(digits):
    """Rounds begin anew from the original model where they do harm; those that are kept are not damaged twice."""
    model, request, (x, y) = digits
    outcome = CT()(model, request)
    assert outcome.applied, outcome.reason
    stays = y != 1
    assert accuracy(outcome.model, (x[stays], y[stays])) > 0.95
    assert not torch.equal(outcome.model[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BoundaryShrink(bound=0.0), "bound is 0.0, expected a number above zero"),
        (lambda: JiT(sigma=0.0), "sigma is 0.0, expected a number above zero"),
        (lambda: JiT(samples=0), "samples is 0"),
        (lambda: L1Sparse(gamma=-1.0), "gamma is -1.0"),
        (lambda: MSG(ratio=1.5), "ratio is 1.5"),
        (lambda: WoodFisher(factor=0.0), "factor is 0.0"),
        (lambda: WoodFisher(samples=0), "samples is 0"),
        (lambda: UNSIR(noise=0), "noise is 0"),
        (lambda: UNSIR(repair_lr=-1.0), "repair_lr is -1.0"),
    ],
)
def test_clear_errors(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("method", [UNSIR(epochs=1), BoundaryShrink(epochs=1), JiT(epochs=1)])
def test_tokens_are_refused_where_inputs_are_to_change(method):
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    request = Request.remove((torch.randint(9, (20, 3)), torch.arange(20) % 3), range(3))
    with pytest.raises(ValueError, match="request: has inputs"):
        method(model, request)
