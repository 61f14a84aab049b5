"""Rounded weights, probes and relearning: by hand, and on a model that hides a class rather than forgetting it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import network_that_knows_digits
from unlearnx.methods import FirstOrder, Request
from unlearnx.metrics import accuracy, linear_probe, mean_loss, relearn_curve, rounded_weights
from unlearnx.models import Training, digits_cnn


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_by_a_loop(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5))
    with torch.no_grad():
        model[0].weight[1] = 0
    before = copy.deepcopy(model.state_dict())
    rounded = rounded_weights(model, bits)
    most = 2 ** (bits - 1) - 1
    for name, p in before.items():
        found = rounded.state_dict()[name]
        if p.dim() == 1:
            assert torch.equal(found, p)
            continue
        for row, got in zip(p, found, strict=True):
            step = float(row.abs().max()) / most
            expected = [step * round(float(w) / step) if step else 0.0 for w in row.flatten()]
            torch.testing.assert_close(got.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-7)
            assert len(got.unique()) <= 2**bits - 1
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_an_adapter_is_merged_before_the_weights_are_rounded():
    """What is rounded is the sum of both: an adapter's own factors round to another one."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    lora = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(plain), lora).eval()
    before = copy.deepcopy(model.state_dict())
    whole = copy.deepcopy(model).merge_and_unload()
    rounded = rounded_weights(model, 4)
    assert list(rounded.state_dict()) == list(plain.state_dict())
    for name, p in rounded_weights(whole, 4).state_dict().items():
        assert torch.equal(rounded.state_dict()[name], p)
    assert not torch.allclose(rounded.state_dict()["0.weight"], rounded_weights(plain, 4)[0].weight)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())  # the user's is as it was


def test_small_changes_are_rounded_away():
    """Unlearning that moves weights by less than half a step leaves the rounded model as it was."""
    torch.manual_seed(0)
    model = nn.Linear(16, 4)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.weight.mul_(1 + 1e-4)
        step = moved.weight.abs().amax(1, keepdim=True) / 7
        middle = ((moved.weight / step) % 1 - 0.5).abs() < 0.05  # those that are close to being rounded elsewhere
    a, b = rounded_weights(model, 4).weight, rounded_weights(moved, 4).weight
    torch.testing.assert_close(a[~middle], b[~middle], rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def digits():
    return network_that_knows_digits()


def test_a_class_that_the_last_layer_hides_is_found_by_a_probe(digits):
    model, s = digits
    request = Request.remove_class((s.train_x, s.train_y), 1)
    names = [name for name, _ in model.named_parameters()][-2:]
    hidden = FirstOrder(params=names)(model, request).model
    ones = s.test_y == 1
    test = s.test_x[ones], s.test_y[ones]
    assert accuracy(hidden, test) < 0.1
    probed = linear_probe(hidden, (s.train_x, s.train_y), test)
    assert next(iter(probed)) == "input"
    assert list(probed.values())[-1] > 0.9
    assert probed == linear_probe(hidden, (s.train_x, s.train_y), test)


def test_a_hidden_class_is_relearned_from_a_few_samples(digits):
    model, s = digits
    ones = s.train_y == 1
    forget = s.train_x[ones], s.train_y[ones]
    request = Request.remove_class((s.train_x, s.train_y), 1)
    hidden = FirstOrder(params=[name for name, _ in model.named_parameters()][-2:])(model, request).model
    torch.manual_seed(1)
    never = digits_cnn().train()
    Training(15, lr=2e-3).run(never, (s.train_x[~ones], s.train_y[~ones]))
    before = copy.deepcopy(hidden.state_dict())
    curves = [relearn_curve(m, forget, [0, 1, 10], steps=10) for m in (hidden, never.eval())]
    assert all(torch.equal(p, before[name]) for name, p in hidden.state_dict().items())
    for curve in curves:
        assert curve[10] < curve[0]
    assert curves[0][10] < curves[1][10]


def test_what_is_measured_is_what_no_count_trains_on():
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    model = nn.Linear(4, 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    rest = order[5:]
    found = relearn_curve(model, (x, y), [0, 5, 2])
    assert list(found) == [0, 5, 2]
    assert found[0] == pytest.approx(mean_loss(model, F.cross_entropy, (x[rest], y[rest])), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, d: rounded_weights(m, 1), "bits is 1, expected a number from 2 to 16"),
        (lambda m, d: relearn_curve(m, d, [20]), "counts: holds 20, expected fewer than the 20 samples of forget"),
        (lambda m, d: relearn_curve(m, d, [-1]), "counts is"),
        (lambda m, d: relearn_curve(m, d, []), "counts is"),
        (lambda m, d: relearn_curve(m, d, [1], steps=0), "steps is 0"),
        (lambda m, d: linear_probe(m, d, (d[0], d[0])), "model: gives no class score"),
    ],
)
def test_clear_errors(call, said):
    with pytest.raises(ValueError, match=said):
        call(nn.Linear(4, 3), (torch.randn(20, 4), torch.arange(20) % 3))
