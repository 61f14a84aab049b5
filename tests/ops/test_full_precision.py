"""Ops keep to float32 whatever torch may compute float32 products in, and leave its switches as they were."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.test_integration import every_op, given, results
from unlearnx.ops import _switches

CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.aten.mv}


def tf32_is_off():
    """Whether cuBLAS would find TF32 switched off."""
    return torch.backends.cuda.matmul.fp32_precision != "tf32"


@contextmanager
def reduced_precision():
    """Everything that torch lets float32 be computed in instead, on any device."""
    before = torch.get_float32_matmul_precision()
    convolutions = [(torch.backends.cudnn.conv, "tf32"), (torch.backends.mkldnn.conv, "bf16")]
    precisions = [module.fp32_precision for module, _ in convolutions]
    torch.set_float32_matmul_precision("medium")  # TF32 on GPUs, bfloat16 on CPUs
    for module, precision in convolutions:
        module.fp32_precision = precision
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for (module, _), precision in zip(convolutions, precisions, strict=True):
            module.fp32_precision = precision


def switches():
    conv = torch.backends.cudnn.conv.fp32_precision, torch.backends.mkldnn.conv.fp32_precision
    return torch.get_float32_matmul_precision(), conv, torch.backends.mkldnn.enabled, tf32_is_off()


@every_op
def test_reduced_precision_changes_nothing(name, device):
    call, tensors = given(name, device)
    expected = results(call, tensors)
    call, tensors = given(name, device)
    with reduced_precision():
        before = switches()
        actual = results(call, tensors)
        assert switches() == before
    # The products of an LSTM with its inputs are layers as any others. Elsewhere libraries may add in another order,
    # which is far below the 1e-3 and more that lower precision would change.
    tolerance = 2e-2 if name == "lstm" else 1e-6
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance * max(1.0, float(e.abs().max())))


def test_products_of_a_whole_layer_stay_exact(device):
    """Sizes at which libraries do take units of lower precision where they may."""
    x, dy, v = (torch.randn(*shape, device=device) for shape in [(64, 32, 256), (64, 32, 128), (128, 256)])
    images, gradients, kernels = (
        torch.randn(*shape, device=device) for shape in [(16, 32, 16, 16), (16, 32, 16, 16), (32, 32, 3, 3)]
    )
    along = nn.functional.conv2d(images.double(), kernels.double(), padding=1)
    with reduced_precision():
        linear = torch.ops.unlearnx.linear_grad_dot(x, dy, v=v)
        conv2d = torch.ops.unlearnx.conv2d_grad_dot(images, gradients, [3, 3], padding=[1, 1], v=kernels)
    for got, exact in [
        (linear, torch.einsum("nto,oi,nti->n", dy.double(), v.double(), x.double())),
        (conv2d, (along * gradients.double()).sum((1, 2, 3))),
    ]:
        assert (got.double() - exact).norm() <= 1e-5 * exact.norm()


class Spy(TorchDispatchMode):
    """Takes note of the products that an op makes on the CPU, and of whether bfloat16 is off at each."""

    def __init__(self):
        super().__init__()
        self.entered = 0
        self.products = []
        self.convolutions = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.entered += func.overloadpacket is torch.ops.unlearnx._enter_full_precision
        if func.overloadpacket in PRODUCTS:
            self.products.append(not torch.backends.mkldnn.enabled)
        if func.overloadpacket is torch.ops.aten._convolution:
            self.convolutions.append(args[12])  # allow_tf32
        return func(*args, **(kwargs or {}))


def watched(op, *args, **kwargs):
    """The products inside of an op: called past the dispatcher, which would not show them."""
    with reduced_precision(), Spy() as spy:
        getattr(torch.ops.unlearnx, op).default.redispatch(CPU, *args, **kwargs)
    return spy


HEAD = torch.randn(6, 9), torch.randn(6, 7)
IMAGES = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 6, 6)
GATES, CELLS, WEIGHT = torch.randn(3, 2, 20), torch.randn(4, 2, 5), torch.randn(20, 5)


@pytest.mark.parametrize(
    ("op", "args", "kwargs"),
    [
        ("linear_grad_dot", HEAD, {"v": torch.randn(7, 9)}),
        ("scale_shift_grad_sq", (HEAD[0], HEAD[0]), {"weight": torch.rand(6)}),
        ("scale_shift_grad_dot", (HEAD[0], HEAD[0]), {"v_scale": torch.randn(9), "v_shift": torch.randn(9)}),
        ("lstm_forward", (GATES, None, None, WEIGHT), {}),
        ("lstm_backward", (CELLS, CELLS, None, CELLS, GATES, WEIGHT, True), {}),
        ("lstm_tangent", (GATES, None, None, CELLS, GATES, WEIGHT), {}),
    ],
)
def test_products_inside_are_made_in_full_precision(op, args, kwargs):
    spy = watched(op, *args, **kwargs)
    assert spy.entered == 1
    assert spy.products or op.startswith(("linear", "lstm"))  # whose products are made past the dispatcher
    assert all(spy.products)
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize("inherited", [False, True])
def test_tf32_is_switched_off_inside_and_on_again(inherited):
    """What ops on a GPU call before and after their products; the last one to leave switches."""
    own, everything = torch.backends.cuda.matmul, torch.backends
    before = own.fp32_precision, everything.fp32_precision
    own.fp32_precision, everything.fp32_precision = ("none" if inherited else "tf32"), ("tf32" if inherited else "none")
    try:
        first, second = (_switches._enter_full_precision(True) for _ in range(2))
        _switches._leave_full_precision(True, first)
        assert tf32_is_off()
        _switches._leave_full_precision(True, second)
        assert not tf32_is_off()
        everything.fp32_precision = "ieee"
        assert tf32_is_off() == inherited
        assert _switches._enter_full_precision(True) == (0 if inherited else _switches.PRODUCTS)
        if not inherited:
            _switches._leave_full_precision(True, _switches.PRODUCTS)
    finally:
        own.fp32_precision, everything.fp32_precision = before


def test_convolutions_inside_are_made_without_tf32():
    assert watched("conv2d_grad_dot", *IMAGES, [3, 3], padding=[1, 1], v=torch.randn(4, 3, 3, 3)).convolutions == [
        False
    ]


def test_switches_come_back_after_an_error():
    with reduced_precision():
        before = switches()
        with pytest.raises(ValueError, match="v has shape"):
            torch.ops.unlearnx.linear_grad_dot(*HEAD, v=torch.randn(2, 2))
        assert switches() == before


def test_switches_come_back_after_ops_of_several_threads():
    """The last one to leave turns on what the first one turned off."""
    x, dy = torch.randn(2000, 300), torch.randn(2000, 200)
    v = torch.randn(200, 300)
    expected = torch.ops.unlearnx.linear_grad_dot(x, dy, v=v)
    with reduced_precision(), ThreadPoolExecutor(4) as pool:
        before = switches()
        for dots in pool.map(lambda _: torch.ops.unlearnx.linear_grad_dot(x, dy, v=v), range(40)):
            torch.testing.assert_close(dots, expected, rtol=1e-4, atol=1e-3)
        assert switches() == before
