import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.methods import SCRUB, FineTune
from unlearnx.metrics import accuracy
from unlearnx.models import ImageTraining, Training, digits_cnn, fast_dtype, vgg_cifar10


def test_vgg_is_the_published_one():
    model = vgg_cifar10()
    assert sum(p.numel() for p in model.parameters()) == 1_798_282
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vgg_takes_published_checkpoints(real_data):
    checkpoint = real_data.parent / "models" / "cifar10-vgg-clean.pt"
    if not checkpoint.exists():
        pytest.skip(f"{checkpoint.name} does not lie beside UNLEARNX_DATA")
    vgg_cifar10().load_state_dict(torch.load(checkpoint, weights_only=True))


def problem(n=120):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (n,), generator=generator)
    return 2 * torch.eye(3, 6)[y] + torch.randn(n, 6, generator=generator), y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def test_learns_and_returns_seconds():
    model, data = network(), problem()
    before = accuracy(model, data)
    assert Training(20, lr=1e-2, batch_size=16).run(model, data) > 0
    assert accuracy(model, data) > max(0.8, before)


class Interrupted(Exception):
    pass


def test_resumes_where_it_was_cut(tmp_path):
    data, training = problem(), Training(6, lr=1e-2, batch_size=16)
    whole = network()
    training.run(whole, data)
    file, cut, calls = tmp_path / "model.checkpoint", network(), []

    def loss(output, y):
        calls.append(1)
        if len(calls) == 1 + 4 * 8 + 3:  # it is tried once before
            raise Interrupted
        return F.cross_entropy(output, y)

    with pytest.raises(Interrupted):
        Training(6, lr=1e-2, batch_size=16, loss_fn=loss).run(cut, data, checkpoint=file)
    resumed = network()
    training.run(resumed, data, checkpoint=file)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [f.name for f in tmp_path.iterdir()] == ["model.checkpoint"]


def test_checkpoint_of_another_training_is_refused(tmp_path):
    file = tmp_path / "model.checkpoint"
    Training(1).run(network(), problem(), checkpoint=file)
    x, y = problem()
    for training, labels in ((Training(2), y), (Training(1, weight_decay=0.1), y), (Training(1), 2 - y)):
        with pytest.raises(ValueError, match="is of another training"):
            training.run(network(), (x, labels), checkpoint=file)


def test_anchor_keeps_parameters_near():
    def distance(anchor):
        model = network()
        start = copy.deepcopy(model)
        Training(10, lr=1e-2, batch_size=16, anchor=anchor, weight_decay=0.0).run(model, problem())
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        return sum((a - b).square().sum() for a, b in pairs).item()

    assert distance(10.0) < 0.1 * distance(0.0)


def test_chosen_parameters_alone_move():
    model = network()
    before = copy.deepcopy(model.state_dict())
    Training(1, params="last:2").run(model, problem())
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]) == name.startswith("0.")
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_overflow_is_an_error():
    with pytest.raises(FloatingPointError, match=r"the training loss of epoch \d is not finite"):
        Training(2, lr=1e20).run(network(), problem())


@pytest.mark.skipif(fast_dtype("cpu") is None, reason="this processor has no AMX")
def test_autocast_on_images():
    torch.manual_seed(0)
    model, x, y = digits_cnn(), torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    Training(30, lr=1e-2, batch_size=32, autocast=fast_dtype("cpu")).run(model, (x, y))
    assert accuracy(model, (x, y)) > 0.8
    assert all(p.dtype == torch.float32 for p in model.parameters())


def images(n=60):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    return torch.randn(n, 3, 8, 8, generator=generator) + 2 * y.float().view(-1, 1, 1, 1), y


def small_convolution():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def test_images_are_learned_by_the_fast_recipe(tmp_path):
    training, data = ImageTraining(8, lr=0.1, batch_size=20), images()
    model, again = small_convolution(), small_convolution()
    training.run(model, data)
    assert accuracy(model.eval(), data) > 0.8
    training.run(again, data, checkpoint=tmp_path / "model.checkpoint")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_rate_rises_and_falls_linearly():
    p = nn.Parameter(torch.zeros(1))
    optimizer, schedule = ImageTraining(1, lr=0.2, warmup=0.25).optimizer([p], 8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.2 * part for part in (0.25, 0.75, *(1 - (k + 0.5) / 6 for k in range(6)))]
    assert rates == pytest.approx(expected)
    for warmup in (0.0, 1.0):
        _, schedule = ImageTraining(1, warmup=warmup).optimizer([p], 1)
        schedule.step()


def test_the_published_recipe_keeps_its_numbers():
    assert ImageTraining(14) == ImageTraining(
        14, lr=0.2, batch_size=256, weight_decay=5e-4, momentum=0.9, pad=2, warmup=0.2
    )
    with pytest.raises(ValueError, match="momentum is 2"):
        ImageTraining(1, momentum=2.0)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_a_single_sample_is_left_over(norm):
    """It joins the step before where a BatchNorm could not be trained on it alone."""
    model = nn.Sequential(nn.Linear(4, 6), norm(6), nn.Linear(6, 3))
    sizes = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)) if module.training else None)
    data = torch.randn(17, 4), torch.arange(17) % 3
    Training(epochs=2, batch_size=8).run(model, data)
    assert sizes == ([8, 9] if norm is nn.BatchNorm1d else [8, 8, 1]) * 2
    model.eval()
    request = Request.remove((torch.cat([data[0], data[0][:1]]), torch.arange(18) % 3), [17])
    for kind in (FineTune, SCRUB):
        assert kind(epochs=1, batch_size=8, max_increase=9.0)(model, request).applied
