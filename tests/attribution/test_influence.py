import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.curvature.zoo import build, sample_gradients
from unlearnx.attribution import ewc_influence, linear_influence
from unlearnx.curvature import fisher_diagonal

SCORES = {"linear": linear_influence, "ewc": ewc_influence}


def study(name="mlp", failures=3):
    """Model, training points and failures, float64."""
    model, x, y = build(name)
    return model, (x, y), (x.flip(0)[:failures], 2 - y[:failures])


def precision(model, train, damping, strength=1.0):
    fisher = fisher_diagonal(model, F.cross_entropy, train)
    return {name: len(train[0]) * (strength * t + damping) for name, t in fisher.items()}


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "unknown"])
def test_linear_by_its_definition(name):
    model, train, failures = study(name)
    P = precision(model, train, 0.01)
    rows, wrong = (sample_gradients(model, F.cross_entropy, *data) for data in (train, failures))
    expected = -sum((rows[k] * wrong[k].sum(0) / P[k]).flatten(1).sum(1) for k in P)
    for batch_size in (None, 4):
        got = linear_influence(model, F.cross_entropy, train, failures, damping=0.01, batch_size=batch_size)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_damping_defaults_to_the_mean_of_the_diagonal():
    model, train, failures = study()
    fisher = torch.cat([t.flatten() for t in fisher_diagonal(model, F.cross_entropy, train).values()])
    got = linear_influence(model, F.cross_entropy, train, failures)
    expected = linear_influence(model, F.cross_entropy, train, failures, damping=fisher.mean().item())
    torch.testing.assert_close(got, expected)


def moved(model, train, failures, strength, l2):
    """theta_+F by another optimiser, run until it stands still."""
    P = precision(model, train, l2, strength)
    origin = {k: p.detach().clone() for k, p in model.named_parameters()}
    leaves = {k: p.clone().requires_grad_() for k, p in origin.items()}
    search = {"line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(
        list(leaves.values()), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, **search
    )

    def objective():
        optimizer.zero_grad()
        output = torch.func.functional_call(model, leaves, (failures[0],))
        value = F.cross_entropy(output, failures[1], reduction="sum")
        value = value + sum((P[k] * (leaves[k] - origin[k]).square()).sum() for k in P) / 2
        value.backward()
        return value

    optimizer.step(objective)
    return leaves


def test_ewc_finds_the_maximum():
    model, train, failures = study()
    leaves = moved(model, train, failures, 2.0, 1.0)
    with torch.no_grad():
        before = F.cross_entropy(model(train[0]), train[1], reduction="none")
        after = F.cross_entropy(torch.func.functional_call(model, leaves, (train[0],)), train[1], reduction="none")
    got = ewc_influence(model, F.cross_entropy, train, failures, strength=2.0, l2=1.0, steps=300)
    torch.testing.assert_close(got, after - before, rtol=1e-5, atol=1e-8)


def test_small_steps_are_alike():
    """With so much damping that nothing but first order is left, both scores are the same."""
    model, train, failures = study("cnn")
    linear = linear_influence(model, F.cross_entropy, train, failures, damping=1e6)
    ewc = ewc_influence(model, F.cross_entropy, train, failures, l2=1e6, steps=1)
    torch.testing.assert_close(ewc, linear, rtol=1e-3, atol=1e-12)


def test_divergence_is_taken_back():
    """Steps far too long: the failures' losses at the start bound the move."""
    model, train, failures = study()
    for lr in (100.0, 1e30):
        scores = ewc_influence(model, F.cross_entropy, train, failures, strength=1e-6, l2=1e-9, lr=lr, steps=40)
        assert scores.isfinite().all()
    stuck = ewc_influence(model, F.cross_entropy, train, failures, lr=1e30, steps=1)
    assert (stuck == 0).all()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_and_data(score, reduction):
    model, train, failures = study("cnn")
    options = {"damping": 0.1} if score == "linear" else {"l2": 0.1}
    expected = SCORES[score](model, F.cross_entropy, train, failures, **options)

    def loss(output, y):
        return F.cross_entropy(output, y, reduction=reduction)

    loader = DataLoader(TensorDataset(*train), batch_size=4)
    got = SCORES[score](model, loss, loader, TensorDataset(*failures), batch_size=2, **options)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("fisher_type", ["mc", "exact"])
def test_nothing_is_left_behind(score, fisher_type):
    model, train, failures = study("cnn")
    before = {k: t.clone() for k, t in model.state_dict().items()}
    random = torch.get_rng_state()
    first, again = (SCORES[score](model, F.cross_entropy, train, failures, fisher_type=fisher_type) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert not first.requires_grad


@pytest.mark.parametrize("score", SCORES)
def test_some_parameters(score):
    """A model whose other parameters are frozen takes the same step."""
    model, train, failures = study("cnn")
    last = SCORES[score](model, F.cross_entropy, train, failures, params="last:4")
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(("6.", "7.")))
    torch.testing.assert_close(last, SCORES[score](model, F.cross_entropy, train, failures))


def test_bfloat16_models():
    model, train, failures = study()
    expected = linear_influence(model, F.cross_entropy, train, failures)
    narrow = [(x.bfloat16(), y) for x, y in (train, failures)]
    got = linear_influence(model.bfloat16(), F.cross_entropy, *narrow)
    assert (got - expected).norm() <= 0.1 * expected.norm()
    assert ewc_influence(model, F.cross_entropy, *narrow).isfinite().all()


def shuffled(x, y):
    return DataLoader(TensorDataset(x, y), shuffle=True)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t, f: ((t[0][:0], t[1][:0]), f), {}, "train: is empty"),
        (lambda t, f: (t, (f[0][:0], f[1][:0])), {}, "failures: is empty"),
        (lambda t, f: (shuffled(*t), f), {}, "train: is a DataLoader that shuffles"),
        (lambda t, f: (t, f), {"damping": 0.0, "l2": 0.0}, "expected a finite number > 0"),
        (lambda t, f: (t, f), {"params": ["nope"]}, "no parameter 'nope'"),
        (lambda t, f: (t, f), {"fisher_type": "nope"}, "fisher_type is 'nope'"),
        (lambda t, f: (t, (f[0] / 0, f[1])), {}, "gradient|failures"),
    ],
)
def test_clear_errors(score, change, options, message):
    model, train, failures = study()
    known = {"linear": "damping", "ewc": "l2"}
    options = {k: v for k, v in options.items() if k == known[score] or k not in known.values()}
    with pytest.raises(ValueError, match=message):
        SCORES[score](model, F.cross_entropy, *change(train, failures), **options)


def test_models_whose_samples_interact_are_refused():
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    _, train, failures = study()
    for score in SCORES.values():
        with pytest.raises(ValueError, match=r"call model\.eval"):
            score(model, F.cross_entropy, train, failures)
