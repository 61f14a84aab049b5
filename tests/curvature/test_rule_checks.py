"""The rules of per-sample gradients are found right where they are, whatever precision the model is to run in."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.precision import tf32
from unlearnx._losses import SampleLoss
from unlearnx._precision import exact_products
from unlearnx.curvature.per_sample import SampleGradients


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.body(x) + self.skip(x))


def resnet(*blocks, width=16):
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Residual(channels, width << stage, 2 if stage and not block else 1))
            channels = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def vgg():
    layers, channels = [], 3
    for outputs in (
        32,
        32,
        "pool",
        64,
        64,
        "pool",
        128,
        128,
        128,
        "pool",
        128,
        128,
        128,
        "pool",
        128,
        128,
        128,
        "pool",
    ):
        if outputs == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


def calibrated(model, x):
    """With running statistics of real activations, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


NETWORKS = {"ResNet-18": partial(resnet, 2, 2, 2, 2), "ResNet-34": partial(resnet, 3, 4, 6, 3), "VGG-16": vgg}


class TF32(TorchDispatchMode):
    """Products and convolutions round their operands to ten bits, as TF32 does, where torch lets them."""

    PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
    CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        products = func.overloadpacket in self.PRODUCTS and torch.get_float32_matmul_precision() != "highest"
        convolutions = func.overloadpacket in self.CONVOLUTIONS and torch.backends.cudnn.allow_tf32
        if products or convolutions:
            args = [self.rounded(a) if torch.is_tensor(a) and a.dtype == torch.float32 else a for a in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(t):
        bits = t.contiguous().view(torch.int32)
        return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def untrusted(model, x, dtype=None):
    """Parameters whose rules are not trusted, of a model whose rules are right."""
    names = [name for name, _ in model.named_parameters()]
    gradients = SampleGradients(model, SampleLoss(F.cross_entropy), names, x, dtype)
    assert gradients.axes != {}
    return [name for name in names if name not in gradients.trusted]


@pytest.fixture(params=NETWORKS)
def deep(request, device):
    x = torch.randn(32, 3, 32, 32)
    return calibrated(NETWORKS[request.param](), x).to(device), x[:3].to(device)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_rules_of_deep_networks(deep, dtype):
    assert untrusted(*deep, dtype) == []


def test_rules_of_deep_networks_under_tf32(deep):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with TF32():
            assert untrusted(*deep) == []
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-34"])
def test_rules_of_wide_networks(name):
    """Among so many ReLUs some are so near zero that another order of memory, which rounds otherwise, switches them."""
    torch.manual_seed(2)
    x = torch.randn(32, 3, 32, 32)
    assert untrusted(calibrated(NETWORKS[name](width=64), x), x[:3]) == []


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-34"])
def test_rules_of_deep_networks_under_tf32_of_a_gpu(name):
    """At the published width, where the convolutions are worth a GPU's tensor cores."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("TF32 needs sm_80 or later")
    x = torch.randn(32, 3, 32, 32, device="cuda")
    model = calibrated(NETWORKS[name](width=64).cuda(), x)
    with torch.no_grad(), tf32(False):
        exact = model(x)
    with torch.no_grad(), tf32(True):
        rounded = model(x)
    difference = (rounded - exact).norm() / exact.norm()
    assert difference > 1e-5, "TF32 was not taken: what follows would show nothing"
    with tf32(True):
        assert untrusted(model, x[:3]) == []


def precisions():
    gpu, cpu = torch.backends.cudnn, torch.backends.mkldnn
    switches = (torch.backends.cuda.matmul, gpu.conv, gpu.rnn, cpu.matmul, cpu.conv, cpu.rnn)
    return [switch.fp32_precision for switch in switches]


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
        lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    ],
)
def test_switches_are_off_and_come_back(change):
    """Those of both kinds that torch has for the same."""
    given = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    convolutions = torch.backends.mkldnn.conv.fp32_precision
    try:
        change()
        before = precisions()
        with exact_products():
            assert not {"tf32", "bf16"} & set(precisions())
        assert precisions() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = given
        torch.backends.mkldnn.conv.fp32_precision = convolutions
