import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.curvature.zoo import ZOO, build, sample_gradients
from unlearnx.curvature import grad_difference, per_sample_grad_difference

LOSSES = {
    "mean": F.cross_entropy,
    "sum": lambda o, y: F.cross_entropy(o, y, reduction="sum"),
    "per sample": lambda o, y: F.cross_entropy(o, y, reduction="none"),
}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_changed_labels(name, loss, batch_size):
    model, x, y = build(name)
    y_new = (y + 1) % 3
    old, new = (sample_gradients(model, F.cross_entropy, x, labels) for labels in (y, y_new))
    expected = {k: (new[k] - old[k]).sum(0) for k in old}
    assert_equal(grad_difference(model, LOSSES[loss], (x, y), (x, y_new), batch_size=batch_size), expected)


@pytest.mark.parametrize("name", ZOO)
def test_changed_features(name):
    model, x, y = build(name)
    x_new = x.flip(0)
    old, new = (sample_gradients(model, F.cross_entropy, features, y) for features in (x, x_new))
    rows = {k: new[k] - old[k] for k in old}
    assert_equal(grad_difference(model, F.cross_entropy, (x, y), (x_new, y)), {k: r.sum(0) for k, r in rows.items()})
    assert_equal(per_sample_grad_difference(model, F.cross_entropy, (x, y), (x_new, y)), rows)


def test_without_new_it_is_the_gradient():
    model, x, y = build("cnn")
    rows = sample_gradients(model, F.cross_entropy, x, y)
    assert_equal(grad_difference(model, F.cross_entropy, (x, y)), {k: r.sum(0) for k, r in rows.items()})
    assert_equal(per_sample_grad_difference(model, F.cross_entropy, (x, y)), rows)


def test_changed_labels_take_one_forward_pass():
    model, x, y = build("mlp")
    calls = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    grad_difference(model, F.cross_entropy, (x, y), (x.clone(), 2 - y))
    assert calls.count(len(x)) == 1  # others are tries on a few samples


def test_frozen_prefix_needs_no_graph():
    model, x, y = build("cnn")
    expected = grad_difference(model, F.cross_entropy, (x, y), (x, 2 - y))
    grads = []
    model[3].register_forward_hook(lambda m, i, o: grads.append(o.requires_grad) if len(o) == len(x) else None)
    last = grad_difference(model, F.cross_entropy, (x, y), (x, 2 - y), params="last:4")
    assert grads == [False]
    assert_equal(last, {k: expected[k] for k in ("6.weight", "6.bias", "7.weight", "7.bias")})


def test_datasets_and_loaders():
    model, x, y = build("mlp")
    expected = grad_difference(model, F.cross_entropy, (x, y))
    dataset = TensorDataset(x, y)
    as_list = [(a, b) for a, b in zip(x, y, strict=True)]
    for data in (dataset, DataLoader(dataset, batch_size=2, shuffle=True), as_list_dataset(as_list)):
        assert_equal(grad_difference(model, F.cross_entropy, data), expected)


def as_list_dataset(items):
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return len(items)

        def __getitem__(self, i):
            return items[i]

    return Items()


def test_loaders_that_shuffle_do_not_pair_up():
    model, x, y = build("mlp")
    old, new = (DataLoader(TensorDataset(x, labels), batch_size=2, shuffle=True) for labels in (y, 2 - y))
    with pytest.raises(ValueError, match="old: is a DataLoader that shuffles"):
        grad_difference(model, F.cross_entropy, old, new)
    ordered = [DataLoader(d.dataset, batch_size=2) for d in (old, new)]
    expected = per_sample_grad_difference(model, F.cross_entropy, (x, y), (x, 2 - y))
    assert_equal(per_sample_grad_difference(model, F.cross_entropy, *ordered), expected)


def test_datasets_with_items_of_their_own():
    """Subclasses of TensorDataset and Subset may transform their samples."""

    class Doubled(TensorDataset):
        def __getitem__(self, i):
            a, b = super().__getitem__(i)
            return 2 * a, b

    model, x, y = build("mlp")
    expected = grad_difference(model, F.cross_entropy, (2 * x, y))
    assert_equal(grad_difference(model, F.cross_entropy, Doubled(x, y)), expected)
    assert_equal(grad_difference(model, F.cross_entropy, Subset(Doubled(x, y), range(9))), expected)


def test_model_is_left_alone():
    model, x, y = build("cnn")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grad_difference(model, F.cross_entropy, (x, y), (x, 2 - y))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def weighted(output, y):
    return F.cross_entropy(output, y, weight=torch.tensor([1.0, 5.0, 9.0], dtype=output.dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: grad_difference(m, F.cross_entropy, (x[:0], y[:0])), "old: is empty"),
        (lambda m, x, y: grad_difference(m, F.cross_entropy, (x, y[:3])), "got 9 samples in x and 3 in y"),
        (lambda m, x, y: grad_difference(m, F.cross_entropy, (x, y), (x[:3], y[:3])), "new: has 3 samples, expected 9"),
        (lambda m, x, y: grad_difference(m, F.cross_entropy, (x * float("nan"), y)), "gradient of '0.weight'"),
        (lambda m, x, y: grad_difference(m, weighted, (x, y)), "expected their mean or sum"),
        (lambda m, x, y: grad_difference(m, F.cross_entropy, (x, y), params=["nope"]), "has no parameter 'nope'"),
        (lambda m, x, y: grad_difference(m, F.cross_entropy, (x, y), params="last:9"), "'last:K' with K from 1 to 4"),
        (lambda m, x, y: grad_difference(m, F.cross_entropy, (x, y), batch_size=0), "batch_size is 0"),
        (lambda m, x, y: grad_difference(m.requires_grad_(False), F.cross_entropy, (x, y)), "selects no parameter"),
    ],
)
def test_clear_errors(call, message):
    model, x, y = build("mlp")
    y[:2] = torch.tensor([0, 2])
    with pytest.raises(ValueError, match=message):
        call(model, x, y)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.BatchNorm1d(5), "BatchNorm1d '1' is in train mode"),
        (nn.BatchNorm1d(5, track_running_stats=False).eval(), "normalises by the statistics of the batch"),
        (nn.Dropout(0.5), "Dropout '1' is in train mode: its output is random"),
    ],
)
def test_interacting_samples_are_refused(module, message):
    model = nn.Sequential(nn.Linear(6, 5), module, nn.Linear(5, 3))
    with pytest.raises(ValueError, match=message):
        grad_difference(model, F.cross_entropy, (torch.randn(4, 6), torch.zeros(4, dtype=torch.long)))


def test_pairs_may_differ_in_length():
    model, x, y = build("lstm")
    x_new = x[:, :3]
    old, new = (sample_gradients(model, F.cross_entropy, tokens, y) for tokens in (x, x_new))
    got = per_sample_grad_difference(model, F.cross_entropy, (x, y), (x_new, y))
    assert_equal(got, {k: new[k] - old[k] for k in old})
