import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.curvature.zoo import BY_VMAP, ZOO, build, sample_gradients
from tests.helpers import threads
from unlearnx._losses import SampleLoss
from unlearnx.curvature import fisher_diagonal
from unlearnx.curvature.samples import SampleGradients
from unlearnx.losses import causal_lm


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


def test_mc_labels_do_not_depend_on_batches():
    model, x, y = build("mlp")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_sampler=[range(4), range(4, 9)])
    whole, small, loaded = (
        fisher_diagonal(
            model,
            F.cross_entropy,
            data,
            fisher_type="mc",
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(0),
        )
        for data, batch_size in (((x, y), None), ((x, y), 2), (loader, None))
    )
    assert_equal(small, whole)
    assert_equal(loaded, whole)


def test_mc_of_a_loader_that_repeats_samples():
    model, x, y = build("mlp")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_sampler=[range(9), range(9)])
    assert all(t.isfinite().all() for t in fisher_diagonal(model, F.cross_entropy, loader, fisher_type="mc").values())


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


@pytest.mark.parametrize("name", ["cross-attention", "cross-attention, projections apart", "derived", "products"])
def test_parameters_alone(name):
    """A rule serves some of the parameters of its function as well as all."""
    model, x, y = build(name)
    for key, expected in empirical(model, x, y).items():
        assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), params=[key]), {key: expected})


def test_frozen_prefix_runs_once():
    model, x, y = build("cnn")
    expected = empirical(model, x, y)
    calls = []
    model[0].register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    last = fisher_diagonal(model, F.cross_entropy, (x, y), params="last:4", fisher_type="empirical")
    assert calls.count(len(x)) == 1  # others are tries on a few samples
    assert_equal(last, {k: expected[k] for k in last})


@pytest.mark.parametrize("name", ZOO)
def test_support_matrix(name):
    """Which parameters have rules and which go through vmap(grad) or a loop, as the documentation says."""
    model, x, _ = build(name)
    names = [name for name, _ in model.named_parameters()]
    assert set(SampleGradients(model, SampleLoss(F.cross_entropy), names, x, None).missing) == BY_VMAP.get(name, set())


def test_axis_of_the_samples_is_not_guessed():
    """Inputs (steps, samples) with equally many of both: the check on the first samples finds the sample dimension."""
    model, *_ = build("lstm, steps first")
    x, y = torch.randint(7, (12, 6)), torch.randint(3, (12,))
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=6), empirical(model, x, y))


@pytest.mark.parametrize("name", ["cnn", "attention", "residual", "embedding"])
def test_equal_bits_on_any_number_of_threads(name):
    """For models on which torch's own passes give the same bits; for the LSTM's small products its BLAS does not."""
    model, x, y = build(name)
    model, x = model.float(), x.float() if x.is_floating_point() else x
    results = []
    for n in (1, 2):
        with threads(n):
            results.append(fisher_diagonal(model, F.cross_entropy, (x, y)))
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


class Steps(torch.nn.Module):
    """A layer that is called once per step, then once on all steps, steps first."""

    def __init__(self):
        super().__init__()
        self.cell, self.last = torch.nn.LSTMCell(3, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0])
        return self.last(torch.stack(outputs)).mean(0)


def test_number_of_calls_may_change():
    model = Steps().double()
    long, short = torch.randn(5, 4, 3).double(), torch.randn(3, 3, 3).double()
    y = torch.randint(3, (8,))
    expected = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    for x, labels in ((long, y[:5]), (short, y[5:])):
        for k, rows in sample_gradients(model, F.cross_entropy, x, labels).items():
            expected[k] += rows.square().sum(0)

    class ByLength(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return [*long, *short][i], y[i]

    loader = torch.utils.data.DataLoader(ByLength(), batch_sampler=[[0, 1, 2, 3, 4], [5, 6, 7]])
    assert_equal(fisher_diagonal(model, F.cross_entropy, loader, reduction="sum"), expected)


class Siamese(torch.nn.Module):
    """Two views of the samples, stacked along a new first dimension."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)

    def forward(self, x):
        h = self.layer(x.transpose(0, 1)).tanh()
        return self.last(h[0] * h[1])


@pytest.mark.parametrize("batch_size", [2, 8])
def test_first_samples_without_gradient_prove_nothing(batch_size):
    """The losses of the first samples are constant: the check of the rules must not rely on them."""
    model, x = Siamese().double(), torch.randn(10, 2, 3).double()
    y = torch.randint(3, (10,))
    y[:3] = -100

    def loss(output, y):
        return F.cross_entropy(output, y, reduction="none", ignore_index=-100)

    rows = sample_gradients(model, loss, x, y)
    got = fisher_diagonal(model, loss, (x, y), batch_size=batch_size)
    assert_equal(got, {k: r.square().mean(0) for k, r in rows.items()})


def test_weighted_mean_is_refused():
    model, x = torch.nn.Linear(6, 5), torch.randn(64, 6)
    y = torch.randint(5, (64,))
    y[:3] = 0
    weight = torch.arange(1.0, 6.0)
    with pytest.raises(ValueError, match="expected their mean or sum"):
        fisher_diagonal(model, lambda o, t: F.cross_entropy(o, t, weight=weight), (x, y))


class Viewing(torch.nn.Module):
    """A model that needs contiguous inputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(64, 3)
        self.scale = torch.nn.Parameter(torch.ones(2, 3, 1, 1))

    def forward(self, x):
        x = x * (1 + x.view(len(x), -1).mean(1).view(-1, 1, 1, 1)) * self.scale.view(6)[:3].view(1, 3, 1, 1)
        return self.last(self.conv(x).view(-1, 64))


def test_order_of_memory_is_the_models_business():
    model, x, y = Viewing().double(), torch.randn(5, 3, 6, 6).double(), torch.randint(3, (5,))
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y)), empirical(model, x, y))
    fisher_diagonal(model, F.cross_entropy, (x, y), fisher_type="batch")


class Conditional(torch.nn.Module):
    """A GRU, which vmap does not support, with a parameter that no rule covers."""

    def __init__(self):
        super().__init__()
        self.cells, self.last = torch.nn.GRU(4, 5, batch_first=True), torch.nn.Linear(5, 3)
        self.scale = torch.nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.last(F.prelu(self.cells(x)[0][:, -1], self.scale))


def test_where_vmap_fails_samples_go_one_by_one():
    model, x, y = Conditional().double(), torch.randn(6, 5, 4).double(), torch.randint(3, (6,))
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y)), empirical(model, x, y))


def test_16_bit_parameters_are_summed_in_float32():
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(6, 5).bfloat16(), torch.randn(2048, 6).bfloat16(), torch.randint(5, (2048,))
    got = fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=1)
    assert got["weight"].dtype == torch.float32
    for k, e in empirical(model.double(), x.double(), y).items():
        assert (got[k] - e).norm() <= 1e-2 * e.norm()


@pytest.mark.parametrize("fisher_type", ["exact", "mc"])
def test_exact_needs_class_numbers(fisher_type):
    x = torch.randn(4, 6)
    with pytest.raises(ValueError, match="needs class numbers"):
        fisher_diagonal(torch.nn.Linear(6, 3), F.cross_entropy, (x, torch.rand(4, 3)), fisher_type=fisher_type)
    with pytest.raises(ValueError, match=r"needs \(N, classes\) with at least two classes"):
        fisher_diagonal(torch.nn.Linear(6, 1), lambda o, y: o[:, 0], (x, torch.ones(4)), fisher_type=fisher_type)


def test_output_must_hold_a_tensor():
    class Text(torch.nn.Linear):
        def forward(self, x):
            return "class 1"

    with pytest.raises(ValueError, match="model: returned str for 3 samples"):
        fisher_diagonal(Text(6, 3), lambda o, y: o.sum(1), (torch.randn(3, 6), torch.ones(3)))


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


class Scores(TorchDispatchMode):
    """Counts results as large as the scores of all tokens at all positions."""

    def __init__(self, size):
        super().__init__()
        self.size, self.results = size, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.size:
            self.results[result.untyped_storage().data_ptr()] = result  # which keeps its room from being used again
        return result


def test_scores_of_a_wide_head_are_not_copied(monkeypatch):
    """They are there once, and so are their gradients, which are worked out in blocks."""
    monkeypatch.setattr("unlearnx.curvature.blocks.BLOCK_BYTES", 1 << 14)
    torch.manual_seed(0)
    tokens, length = 3000, 5
    model = nn.Sequential(nn.Embedding(tokens, 4), nn.Tanh(), nn.Linear(4, tokens, bias=False)).double()
    model[2].weight = model[0].weight
    x = torch.randint(tokens, (6, length))
    fisher_diagonal(model, causal_lm, (x, x))  # the rules are checked
    with Scores(3 * length * tokens) as scores:
        got = fisher_diagonal(model, causal_lm, (x, x), batch_size=3)
    assert len(scores.results) == 2 * 2  # for two parts
    assert_equal(got, {k: g.square().mean(0) for k, g in sample_gradients(model, causal_lm, x, x).items()})
