"""The rules of per-sample gradients are found right where they are, whatever precision the model is to run in."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.precision import tf32
from tests.curvature.test_fisher import assert_equal, empirical
from unlearnx._losses import SampleLoss
from unlearnx._precision import exact_products
from unlearnx.curvature import fisher_diagonal, rule_check, samples, single_samples
from unlearnx.curvature.samples import SampleGradients


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
    assert gradients.places != {}
    return [name for name in names if name not in gradients.trusted]


@pytest.fixture(params=[(name, seed) for name in NETWORKS for seed in range(3)], ids="{0[0]}-{0[1]}".format)
def deep(request, device):
    name, seed = request.param
    torch.manual_seed(seed)
    x = torch.randn(32, 3, 32, 32)
    return calibrated(NETWORKS[name](), x).to(device), x[:3].to(device)


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


def random_network(seed):
    """A deep network of convolutions, with strides, groups and normalisations as they come."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=g))]

    layers, channels = [], 3
    for _ in range(drawn(6, 10, 14)):
        outputs, groups = drawn(8, 16, 24, 32), drawn(1, 1, 1, 4) if channels % 4 == 0 else 1
        layers.append(nn.Conv2d(channels, outputs, drawn(1, 3, 5), drawn(1, 1, 1, 2), 2, groups=groups))
        layers += drawn([nn.BatchNorm2d(outputs)], [nn.GroupNorm(4, outputs)], [])
        layers.append(drawn(nn.ReLU, nn.LeakyReLU, nn.GELU)())
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))


@pytest.mark.parametrize("seed", range(16))
def test_rules_of_random_networks(seed):
    torch.manual_seed(seed)
    x = torch.randn(8, 3, 24, 24)
    assert untrusted(calibrated(random_network(seed), x), x[:3]) == []


class Attention(nn.Module):
    """The gradient of the bias of its keys is zero; what is computed is rounding."""

    def __init__(self, width=32):
        super().__init__()
        self.q, self.k, self.v, self.last = (nn.Linear(width, width) for _ in range(4))
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(2, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.prelu(self.last(x).mT, self.scale).mean(2)  # which has no rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_are_zero_but_for_rounding(dtype):
    assert untrusted(Attention().to(dtype), torch.randn(3, 16, 32, dtype=dtype)) == ["scale"]


def test_tiny_gradients_are_no_zeros():
    """Of a wrong rule for a layer whose gradients are far below those of the others."""
    x = torch.randn(8, 4, dtype=torch.float64)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            first = F.linear(x, self.first.weight, self.first.bias)
            return self.last(x) + 1e-9 * first[:, :3]

    model = Model().double()
    assert untrusted(model, x) == []
    tiny = fisher_diagonal(model, F.cross_entropy, (x, torch.arange(8) % 3))
    assert_equal(tiny, empirical(model, x, torch.arange(8) % 3))


def count_checks(monkeypatch):
    made, original = [], rule_check._Check.result
    monkeypatch.setattr(rule_check._Check, "result", lambda self: made.append(1) or original(self))
    return made


def test_calls_on_a_model_share_the_check(monkeypatch):
    made = count_checks(monkeypatch)
    model, x, y = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(9, 4), torch.arange(9) % 3

    def call(checks):
        fisher_diagonal(model, F.cross_entropy, (x, y))
        assert len(made) == checks

    call(1)
    with torch.no_grad():
        model[0].weight.mul_(2)
    call(1)
    model[1] = nn.Tanh()
    call(2)
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    call(3)
    model[0].weight = nn.Parameter(torch.ones(4, 4))
    call(4)
    model[1].factor = 3
    call(5)
    model.double()
    x = x.double()
    call(6)
    call(6)


def test_one_warning_names_what_has_no_rule():
    model, x, y = Attention(), torch.randn(20, 16, 32), torch.arange(20) % 10
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=6)
    assert [str(w.message) for w in said] == [
        "per-sample gradients of 1 of 9 parameters are computed sample by sample, which is slower: no rule covers what "
        "the model does with 'scale'; unlearnx.curvature.register_rule adds one for a function"
    ]
    assert said[0].filename == __file__


class Clock:
    """A clock on which a second passes with each look at it, and more where a test says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        self.seconds += 1
        return self.seconds


@pytest.mark.parametrize("vmap_is_faster", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 20])
def test_what_has_no_rule_goes_the_faster_way(monkeypatch, vmap_is_faster, batch_size):
    model, x, y = Attention().double(), torch.randn(20, 16, 32).double(), torch.arange(20) % 10
    expected = empirical(model, x, y)
    clock, ways, vmap = Clock(), [], single_samples.vmap

    def timed_vmap(*args, **kwargs):
        ways.append("vmap")
        clock.seconds += 0 if vmap_is_faster else 100
        return vmap(*args, **kwargs)

    monkeypatch.setattr(samples.Pace, "loop_is_next", False)
    monkeypatch.setattr(single_samples, "perf_counter", clock)
    monkeypatch.setattr(single_samples, "vmap", timed_vmap)
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=batch_size), expected, rtol=1e-7)
    assert len(ways) > 1 if vmap_is_faster and batch_size > 1 else len(ways) == (batch_size > 1)


@pytest.mark.parametrize("rules_are_faster", [True, False])
def test_no_rule_is_used_where_a_loop_is_faster(monkeypatch, rules_are_faster):
    """The first parts are timed: two samples in a loop, six by rules."""
    model, x, y = Attention().double(), torch.randn(20, 16, 32).double(), torch.arange(20) % 10
    expected = empirical(model, x, y)
    clock, passes, tape = Clock(), [], samples.Tape

    def timed_tape(parameters, on_contribution, n, places):
        passes.append(n)
        clock.seconds += 0 if rules_are_faster else 1000
        return tape(parameters, on_contribution, n, places)

    for module in (samples, single_samples):  # or the machine's own speed decides how what has no rule goes
        monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(samples, "Tape", timed_tape)
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=15), expected, rtol=1e-7)
    assert passes == ([6, 7, 5] if rules_are_faster else [6])
