"""`ssd_dampen_` runs at the speed of memory: 16 bytes a value, in one pass."""

import pytest
import torch

from benchmarks.stream import triad
from unlearnx.ops import ssd_dampen_

N = 50_000_000
ALPHA, LAM = 10.0, 1.0


def published(p, full, forget):
    """The step of the published code (selective-synaptic-dampening), operation by operation."""
    oimp_norm = full.mul(ALPHA)
    locations = torch.where(forget > oimp_norm)
    weight = (full.mul(LAM).div(forget)).pow(1)
    update = weight[locations]
    min_locs = torch.where(update > 1)
    update[min_locs] = 1
    p[locations] = p[locations].mul(update)


def composition(p, full, forget):
    factor = (LAM * full / forget).clamp_(max=1.0)
    p.copy_(torch.where(forget > ALPHA * full, p * factor, p))


def expression(p, full, forget):
    return torch.where(forget > ALPHA * full, p * (LAM * full / forget).clamp(max=1.0), p)


@pytest.mark.headline
@pytest.mark.benchmark(group="ssd_dampen_")
def test_ssd_dampen(compare, device):
    full = torch.rand(N, device=device)
    forget = torch.rand(N, device=device)  # one entry in twenty exceeds the threshold
    compiled = torch.compile(lambda p, a, b: p.copy_(expression(p, a, b)))
    params = [torch.randn(N, device=device) for _ in range(4)]
    compare.run(
        lambda: ssd_dampen_([params[0]], [full], [forget], ALPHA, LAM),
        {
            "published": lambda: published(params[1], full, forget),
            "torch.where": lambda: composition(params[2], full, forget),
            "torch.compile": lambda: compiled(params[3], full, forget),
            "triad x 4/3": triad(N * 4 // 3, device),  # the same 16 bytes a value
        },
        claims={"published": 6, "torch.where": 4, "torch.compile": 0.87, "triad x 4/3": 0.8},
    )


@pytest.mark.headline
@pytest.mark.benchmark(group="ssd_dampen_")
def test_many_small_tensors(compare, device):
    """A list of the size that networks have: the cost of a call for each tensor shows."""
    shapes = [(64, 64, 3, 3), (64,), (64,), (64,)] * 40
    params, full, forget = ([torch.rand(s, device=device) for s in shapes] for _ in range(3))
    compare.run(
        lambda: ssd_dampen_(params, full, forget, ALPHA, LAM),
        {"torch.where": lambda: [composition(*t) for t in zip(params, full, forget, strict=True)]},
        claims={"torch.where": 1},
    )
