import pytest
import torch
from torch.nn import functional as F
from zoo import BY_VMAP, ZOO, build, sample_gradients

from unlearnx.curvature import fisher_diagonal
from unlearnx.curvature.samples import SampleGradients


def empirical(model, x, y):
    return {k: r.square().mean(0) for k, r in sample_gradients(model, F.cross_entropy, x, y).items()}


def assert_equal(actual, expected, rtol=1e-9):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("name", ZOO)
def test_empirical(name, batch_size):
    model, x, y = build(name)
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=batch_size), empirical(model, x, y))


@pytest.mark.parametrize(
    "name", ["mlp", "sequence", "cnn", "attention", "embedding", "hidden use", "lstm", "gru", "tied weights"]
)
def test_exact(name):
    model, x, y = build(name)
    probabilities = model(x).softmax(1).detach()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for c in range(probabilities.shape[1]):
        for k, rows in sample_gradients(model, F.cross_entropy, x, torch.full_like(y, c)).items():
            expected[k] += torch.tensordot(probabilities[:, c], rows.square(), 1) / len(x)
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), fisher_type="exact", batch_size=4), expected)


def test_mc_approaches_exact():
    model, x, y = build("mlp")
    exact = fisher_diagonal(model, F.cross_entropy, (x, y), fisher_type="exact")
    many = (x.repeat(2000, 1), y.repeat(2000))
    drawn = fisher_diagonal(
        model, F.cross_entropy, many, fisher_type="mc", batch_size=3000, generator=torch.Generator().manual_seed(0)
    )
    for name, t in exact.items():
        torch.testing.assert_close(drawn[name], t, rtol=0.1, atol=0.02 * t.max().item())


def test_batch_is_the_published_rule():
    """Squared gradient of each batch's mean loss, averaged over batches."""
    model, x, y = build("cnn")
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for s in (slice(0, 4), slice(4, 8), slice(8, 9)):
        model.zero_grad()
        F.cross_entropy(model(x[s]), y[s]).backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad.square() / 3
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), fisher_type="batch", batch_size=4), expected)


def test_sum_reduction_and_params():
    model, x, y = build("cnn")
    expected = empirical(model, x, y)
    names = ["0.weight", "7.bias"]
    summed = fisher_diagonal(model, F.cross_entropy, (x, y), params=names, reduction="sum")
    assert_equal(summed, {k: 9 * expected[k] for k in names})


def test_frozen_prefix_runs_once():
    model, x, y = build("cnn")
    expected = empirical(model, x, y)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    last = fisher_diagonal(model, F.cross_entropy, (x, y), params="last:4", fisher_type="empirical")
    assert calls == [1]
    assert_equal(last, {k: expected[k] for k in last})


@pytest.mark.parametrize("name", ZOO)
def test_support_matrix(name, monkeypatch):
    """Which parameters go by their rules, and which through vmap(grad): the table of the README."""
    model, x, y = build(name)
    by_vmap = set()
    original = SampleGradients._one_by_one

    def spy(self, names, *args):
        by_vmap.update(names)
        return original(self, names, *args)

    monkeypatch.setattr(SampleGradients, "_one_by_one", spy)
    fisher_diagonal(model, F.cross_entropy, (x, y))
    assert by_vmap == BY_VMAP.get(name, set())


def test_axis_of_the_samples_is_not_guessed():
    """As many steps as samples in a batch, steps first: the first samples tell which is which."""
    model, *_ = build("lstm, steps first")
    x, y = torch.randint(7, (12, 6)), torch.randint(3, (12,))
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=6), empirical(model, x, y))


@pytest.mark.parametrize("name", ["cnn", "attention", "residual", "embedding"])
def test_equal_bits_on_any_number_of_threads(name):
    """Where torch's own forward and backward give the same bits; its BLAS does not for the LSTM's small products."""
    model, x, y = build(name)
    model, x = model.float(), x.float() if x.is_floating_point() else x
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(fisher_diagonal(model, F.cross_entropy, (x, y)))
    finally:
        torch.set_num_threads(threads)
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key


def test_compute_dtype():
    model, x, y = build("cnn")
    model, x = model.float(), x.float()
    expected = fisher_diagonal(model, F.cross_entropy, (x, y))
    fast = fisher_diagonal(model, F.cross_entropy, (x, y), compute_dtype=torch.bfloat16)
    for name, t in expected.items():
        assert fast[name].dtype == torch.float32
        assert (fast[name] - t).norm() <= 5e-2 * t.norm()


def test_model_is_left_alone():
    model, x, y = build("residual")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fisher_diagonal(model, F.cross_entropy, (x, y))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(fisher_type="true"), "fisher_type is 'true', expected one of empirical, mc, exact, batch"),
        (dict(reduction="max"), "reduction is 'max'"),
        (dict(params="first:2"), "params is 'first:2'"),
    ],
)
def test_clear_errors(options, message):
    model, x, y = build("mlp")
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(model, F.cross_entropy, (x, y), **options)


def test_nan_is_named():
    model, x, y = build("mlp")
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"Fisher diagonal of '0.weight': \d+ of 30 values are NaN"):
        fisher_diagonal(model, F.cross_entropy, (x, y))
