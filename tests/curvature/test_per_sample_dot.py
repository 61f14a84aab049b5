import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.curvature.zoo import ZOO, build, sample_gradients
from tests.helpers import threads
from unlearnx.curvature import contributions, per_sample_grad_dot


def random_like(model, k=None, names=None):
    shapes = {n: p for n, p in model.named_parameters() if names is None or n in names}
    return {n: torch.randn(*([] if k is None else [k]), *p.shape, dtype=torch.float64) for n, p in shapes.items()}


def by_definition(model, loss_fn, x, y, v):
    rows = sample_gradients(model, loss_fn, x, y)
    return sum(v[n].reshape(len(v[n]), -1) @ rows[n].reshape(len(x), -1).T for n in v)


@pytest.mark.parametrize("batch_size", [1, 4, None])
@pytest.mark.parametrize("name", ZOO)
def test_every_model(name, batch_size):
    model, x, y = build(name)
    v = random_like(model, 3)
    expected = by_definition(model, F.cross_entropy, x, y, v)
    got = per_sample_grad_dot(model, F.cross_entropy, (x, y), v, batch_size=batch_size)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["cnn", "attention", "lstm", "unknown"])
def test_float32(name):
    model, x, y = build(name)
    v = random_like(model, 2)
    expected = by_definition(model, F.cross_entropy, x, y, v)
    x = x.float() if x.is_floating_point() else x
    got = per_sample_grad_dot(model.float(), F.cross_entropy, (x, y), v)
    assert got.dtype == torch.float32
    assert (got - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["cnn", "gru", "hidden use"])
def test_one_direction(name):
    model, x, y = build(name)
    v = random_like(model, 2)
    both = per_sample_grad_dot(model, F.cross_entropy, (x, y), v)
    for k in range(2):
        one = per_sample_grad_dot(model, F.cross_entropy, (x, y), {n: t[k] for n, t in v.items()})
        assert one.shape == (9,)
        torch.testing.assert_close(one, both[k])


@pytest.mark.parametrize("name", ["cnn", "attention", "lstm"])
def test_many_directions(name, monkeypatch):
    monkeypatch.setattr(contributions, "CACHED_GRADIENT_BYTES", 4096)  # room for the gradients of a few samples
    model, x, y = build(name)
    v = random_like(model, 160)
    expected = by_definition(model, F.cross_entropy, x, y, v)
    torch.testing.assert_close(per_sample_grad_dot(model, F.cross_entropy, (x, y), v), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(reduction):
    model, x, y = build("mlp")
    v = random_like(model, 1)
    got = per_sample_grad_dot(model, lambda o, y: F.cross_entropy(o, y, reduction=reduction), (x, y), v, batch_size=4)
    torch.testing.assert_close(got, by_definition(model, F.cross_entropy, x, y, v))


def test_passes_that_are_split(monkeypatch):
    """Parts of a batch, and the chunks of vmap(grad), are in the order of the samples."""
    monkeypatch.setattr("unlearnx.curvature.samples.KEPT_ACTIVATION_BYTES", 1)
    monkeypatch.setattr("unlearnx.curvature.single_samples.VMAP_SAMPLES", 2)
    for name in ("unknown", "conv3d", "cnn"):
        model, x, y = build(name)
        v = random_like(model, 2)
        got = per_sample_grad_dot(model, F.cross_entropy, (x, y), v)
        torch.testing.assert_close(got, by_definition(model, F.cross_entropy, x, y, v))


def test_some_parameters():
    model, x, y = build("cnn")
    names = ["6.weight", "6.bias", "7.weight", "7.bias"]
    v = random_like(model, 2, names)
    got = per_sample_grad_dot(model, F.cross_entropy, (x, y), v, params="last:4")
    torch.testing.assert_close(got, by_definition(model, F.cross_entropy, x, y, v))


def test_directions_share_the_passes():
    model, x, y = build("mlp")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    per_sample_grad_dot(model, F.cross_entropy, (x, y), random_like(model))  # which checks the rules, too
    calls.clear()
    per_sample_grad_dot(model, F.cross_entropy, (x, y), random_like(model))
    once = len(calls)
    calls.clear()
    per_sample_grad_dot(model, F.cross_entropy, (x, y), random_like(model, 5))
    assert len(calls) == once


def test_data():
    model, x, y = build("mlp")
    v = random_like(model)
    expected = per_sample_grad_dot(model, F.cross_entropy, (x, y), v)
    for data in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=2)):
        torch.testing.assert_close(per_sample_grad_dot(model, F.cross_entropy, data, v), expected)


def test_nothing_is_left_behind():
    model, x, y = build("cnn")
    before = {k: t.clone() for k, t in model.state_dict().items()}
    got = per_sample_grad_dot(model, F.cross_entropy, (x, y), random_like(model))
    per_sample_grad_dot(model, F.cross_entropy, (x, y), dict(model.named_parameters()))
    assert not got.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_bfloat16_models():
    model, x, y = build("mlp")
    v = random_like(model)
    expected = per_sample_grad_dot(model, F.cross_entropy, (x, y), v)
    got = per_sample_grad_dot(model.bfloat16(), F.cross_entropy, (x.bfloat16(), y), v)
    assert got.dtype == torch.float32
    assert (got - expected).norm() <= 0.05 * expected.norm()


def test_threads_do_not_matter():
    model, x, y = build("cnn")
    v = random_like(model, 2)
    results = []
    for n in (1, 2):
        with threads(n):
            results.append(per_sample_grad_dot(model, F.cross_entropy, (x, y), v))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y, v: per_sample_grad_dot(m, F.cross_entropy, (x[:0], y[:0]), v), "data: is empty"),
        (lambda m, x, y, v: per_sample_grad_dot(m, F.cross_entropy, (x, y), {}), "v: has keys"),
        (
            lambda m, x, y, v: per_sample_grad_dot(m, F.cross_entropy, (x, y), {**v, "0.bias": v["0.bias"][:2]}),
            "v\\['0.bias'\\] has shape \\[2\\], expected \\[5\\]",
        ),
        (
            lambda m, x, y, v: per_sample_grad_dot(
                m, F.cross_entropy, DataLoader(TensorDataset(x, y), shuffle=True), v
            ),
            "data: is a DataLoader that shuffles",
        ),
        (
            lambda m, x, y, v: per_sample_grad_dot(
                m, F.cross_entropy, DataLoader(TensorDataset(x, y), batch_size=2, drop_last=True), v
            ),
            "visits each sample once",
        ),
        (lambda m, x, y, v: per_sample_grad_dot(m, F.cross_entropy, (x / 0, y), v), "products of 'v': 9 of 9"),
        (lambda m, x, y, v: per_sample_grad_dot(m, F.cross_entropy, (x, y), v, batch_size=0), "batch_size is 0"),
    ],
)
def test_clear_errors(call, message):
    model, x, y = build("mlp")
    with pytest.raises(ValueError, match=message):
        call(model, x, y, random_like(model))
