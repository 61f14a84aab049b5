import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx.metrics import saliency

pytest.importorskip("captum")


def network(dtype=torch.float64):
    """A small CNN whose ReLUs overwrite their input, with a dropout that eval mode has to switch off."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 7, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5, inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(28, 4),
    ).to(dtype)
    model[1].running_mean.normal_()
    return model.train()


def images(n=6, dtype=torch.float64):
    return torch.randn(n, 3, 12, 10, dtype=dtype, generator=torch.Generator().manual_seed(1))


def scaled(maps):
    return torch.stack([m / m.max() if m.max() > 0 else m for m in maps])


def grad_cam_by_hand(model, x, targets, layer):
    """Grad-CAM one image at a time, as the paper writes it (equations 1 and 2)."""
    model = copy.deepcopy(model).eval()
    maps = []
    for image, c in zip(x, targets.tolist(), strict=True):
        activation = model[: layer + 1](image[None])
        score = model[layer + 1 :](activation.clone())[0, c]
        (gradient,) = torch.autograd.grad(score, activation)
        weights = gradient.mean((2, 3), keepdim=True)
        cam = (weights * activation).sum(1, keepdim=True).relu()
        maps.append(F.interpolate(cam, x.shape[2:], mode="bilinear")[0, 0].detach())
    return scaled(maps)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("layer", [None, "0"])
def test_grad_cam_is_that_of_the_paper(layer, batch_size):
    model, x, targets = network(), images(), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = grad_cam_by_hand(model, x, targets, int(layer or 5))
    torch.testing.assert_close(saliency(model, x, targets, layer=layer, batch_size=batch_size), expected)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_input_gradient_is_the_gradient_of_the_score(batch_size):
    model, x = network(), images()
    targets = torch.tensor([3, 2, 1, 0, 3, 2])
    leaf = x.clone().requires_grad_()
    scores = copy.deepcopy(model).eval()(leaf)
    scores.gather(1, targets[:, None]).sum().backward()
    expected = scaled(leaf.grad.abs().amax(1))
    torch.testing.assert_close(saliency(model, x, targets, method="input_gradient", batch_size=batch_size), expected)


@pytest.mark.parametrize("method", ["grad_cam", "input_gradient"])
def test_without_targets_the_prediction_counts(method):
    model, x = network(), images()
    predicted = copy.deepcopy(model).eval()(x).argmax(1)
    found = saliency(model, x, method=method)
    torch.testing.assert_close(found, saliency(model, x, predicted, method=method))
    assert found.shape == (6, 12, 10)
    assert not found.requires_grad
    assert found.min() >= 0
    assert torch.equal(found.amax((1, 2)), torch.ones(6, dtype=found.dtype))


@pytest.mark.parametrize("method", ["grad_cam", "input_gradient"])
def test_nothing_is_left_changed(method):
    model, x = network(), images()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[9].weight.grad = torch.ones_like(model[9].weight)
    state, pixels = copy.deepcopy(model.state_dict()), x.clone()
    random = torch.get_rng_state()
    saliency(model, x, method=method)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(x, pixels)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model] == [True] * 4 + [False] + [True] * 5
    assert not model[0].weight.requires_grad
    assert torch.equal(model[9].weight.grad, torch.ones_like(model[9].weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "9.weight")
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["grad_cam", "input_gradient"])
def test_frozen_models_and_memory_orders(method):
    model, x = network(), images()
    expected = saliency(model, x, method=method)
    model.requires_grad_(False).to(memory_format=torch.channels_last)
    torch.testing.assert_close(saliency(model, x, method=method), expected)
    mixed = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(saliency(model, mixed, method=method), expected)


@pytest.mark.parametrize("method", ["grad_cam", "input_gradient"])
def test_first_module_in_place(method):
    x = images()
    pixels = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), *network().eval())
    expected = saliency(model[1:], x.relu(), method=method)
    if method == "input_gradient":
        weight = saliency_unscaled(model[1:], x.relu()) * (x > 0)
        expected = scaled(weight.amax(1))
    torch.testing.assert_close(saliency(model, x, method=method), expected)
    assert torch.equal(x, pixels)


def saliency_unscaled(model, x):
    leaf = x.clone().requires_grad_()
    model(leaf).amax(1).sum().backward()
    return leaf.grad.abs()


def test_zero_stays_zero():
    model = network()
    nn.init.zeros_(model[9].weight)
    for method in ("grad_cam", "input_gradient"):
        assert torch.equal(saliency(model, images(), method=method), torch.zeros(6, 12, 10, dtype=torch.float64))


class Branches(nn.Module):
    """Its last convolution is built and never run."""

    def __init__(self):
        super().__init__()
        self.used = nn.Conv2d(3, 4, 3)
        self.spare = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.used(x).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (network(), {"method": "lime"}, "method is 'lime', expected one of grad_cam, input_gradient"),
        (network(), {"layer": "conv"}, "no module 'conv'; its convolutions are 0, 4"),
        (network(), {"layer": "9"}, r"layer: the output of '9' is a tensor of shape \[6, 1\], expected maps"),
        (
            network(),
            {"method": "input_gradient", "layer": "4"},
            "layer is '4', expected None with method='input_gradient'",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(360, 4)).double(), {}, "no nn.Conv2d; name one of its modules: 0, 1"),
        (Branches().double(), {}, "layer is 'spare', expected a module that the scores depend on"),
        (network()[:6], {}, r"returned scores of shape \[6, 7, 6, 5\]"),
        (network(), {"targets": torch.tensor([0, 1, 2, 3, 4, 0])}, "targets: 4 is out of range for 4 classes"),
        (network(), {"targets": torch.tensor([0, 1])}, r"targets: is torch.int64 of shape \[2\]"),
        (network(), {"targets": torch.zeros(6)}, "targets: is torch.float32"),
        (network(), {"images": torch.zeros(6, 12, 10)}, r"shape \[6, 12, 10\], expected floating point"),
        (network(), {"images": torch.zeros(6, 3, 12, 10, dtype=torch.uint8)}, "images: is torch.uint8"),
        (network(), {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_clear_errors(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        saliency(model, **{"images": images(), **arguments})
