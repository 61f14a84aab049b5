"""Kernels of per-sample gradients, at the sizes of networks, beside torch and beside the ceiling that it reaches here.

The ceiling is the gradient of the whole batch, one product of as many FLOP by the vendor's library, or STREAM's triad
of as many bytes: its time divided by ours is the share of it that we reach. Float32 is without TF32 on both sides.
"""

import pytest
import torch

from benchmarks.gpu.precision import tf32
from benchmarks.stream import triad
from unlearnx import ops

DTYPES = [torch.float32, torch.bfloat16]
# Samples, positions, outputs, inputs: ViT's, a language model's long and short, a vocabulary.
LINEAR = [(64, 197, 3072, 768), (8, 1024, 4096, 4096), (64, 16, 4096, 4096), (4, 512, 50257, 768)]
# Samples, channels, outputs, image, groups: a ResNet's, its first layer, its last, depthwise.
CONV = [(256, 128, 128, 32, 1), (256, 3, 128, 32, 1), (256, 512, 512, 7, 1), (64, 384, 384, 14, 384)]


@pytest.fixture(autouse=True)
def _full_precision():
    with tf32(False):
        yield


@pytest.fixture
def sized(device):
    """A size, smaller on a CPU, where these benchmarks show nothing but that they run."""
    return lambda size: size if device == "cuda" else max(1, size // 16)


def name_of(value):
    return str(value)[6:] if isinstance(value, torch.dtype) else "x".join(map(str, value))


@pytest.mark.benchmark(group="kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("size", LINEAR, ids=name_of)
@pytest.mark.parametrize("kind", ["sq", "sqnorm"])
def test_linear(compare, device, sized, kind, size, dtype):
    n, positions, outputs, inputs = map(sized, size)
    x = torch.randn(n, positions, inputs, device=device, dtype=dtype)
    dy = torch.randn(n, positions, outputs, device=device, dtype=dtype)
    ways = {
        "sq": {"bmm, square, sum": lambda: torch.bmm(dy.mT, x).float().square().sum(0)},
        "sqnorm": {"Gram matrices": lambda: ((x @ x.mT).float() * (dy @ dy.mT).float()).sum((1, 2))},
    }
    op = getattr(ops, f"linear_grad_{kind}")
    compare.run(lambda: op(x, dy), {**ways[kind], "batch's product": lambda: dy.flatten(0, 1).T @ x.flatten(0, 1)})


@pytest.mark.benchmark(group="kernels")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("size", CONV, ids=name_of)
def test_conv(compare, device, sized, size, dtype, layout):
    n, channels, outputs, image, groups = sized(size[0]), *size[1:]
    x, dy = (
        torch.randn(n, c, image, image, device=device, dtype=dtype).contiguous(memory_format=layout)
        for c in (channels, outputs)
    )
    weight = torch.zeros(outputs, channels // groups, 3, 3, device=device, dtype=dtype)

    def of_the_batch():
        settings = [1, 1], [1, 1], [1, 1], False, [0, 0], groups
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *settings, [False, True, False])

    compare.run(lambda: ops.conv2d_grad_sq(x, dy, 3, padding=1, groups=groups), {"batch's gradient": of_the_batch})


@pytest.mark.benchmark(group="kernels")
@pytest.mark.parametrize(("shape", "dim"), [((256, 197, 768), -1), ((256, 128, 32, 32), 1)], ids=["layer", "batch"])
def test_normalisation(compare, device, sized, shape, dim):
    shape = (sized(shape[0]), *shape[1:])
    x, dy = (torch.randn(shape, device=device) for _ in range(2))
    positions = [k for k in range(1, len(shape)) if k != dim % len(shape)]
    compare.run(
        lambda: ops.scale_shift_grad_sq(x, dy, dim=dim),
        {
            "sum, square, sum": lambda: [t.sum(positions).square().sum(0) for t in (x * dy, dy)],
            "triad x 2/3": triad(x.numel() * 2 // 3, device),  # the same 8 bytes a value
        },
    )
