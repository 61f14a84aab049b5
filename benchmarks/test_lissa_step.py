"""`lissa_step_` fuses the update of a list with the norm of its change: 16 bytes a value, in one pass."""

import pytest
import torch

from benchmarks.stream import triad
from unlearnx.ops import lissa_step_

N = 50_000_000
DAMPING, SCALE = 1e-2, 10.0


def eager(h, v, hv):
    """The update as a list comprehension, as published code writes it."""
    new = [a + (1 - DAMPING) * b - c / SCALE for a, b, c in zip(v, h, hv, strict=True)]
    norm = sum((old - t).abs().sum() for old, t in zip(h, new, strict=True))
    for old, t in zip(h, new, strict=True):
        old.copy_(t)
    return norm


def foreach(h, v, hv):
    """The strongest composition of torch's list operations."""
    old = torch._foreach_clone(h) if hasattr(torch, "_foreach_clone") else [t.clone() for t in h]
    torch._foreach_mul_(h, 1 - DAMPING)
    torch._foreach_add_(h, v)
    torch._foreach_add_(h, hv, alpha=-1 / SCALE)
    torch._foreach_sub_(old, h)
    return torch.stack(torch._foreach_norm(old, 1)).sum()


@pytest.mark.headline
@pytest.mark.benchmark(group="lissa_step_")
def test_lissa_step(compare, device):
    h, v, hv = ([torch.randn(n, device=device) for n in (N // 2, N // 4, N // 4)] for _ in range(3))
    compare.run(
        lambda: lissa_step_(h, v, hv, DAMPING, SCALE),
        {
            "eager": lambda: eager(h, v, hv),
            "_foreach": lambda: foreach(h, v, hv),
            "triad x 4/3": triad(N * 4 // 3, device),  # the same 16 bytes a value
        },
        claims={"eager": 4, "_foreach": 2, "triad x 4/3": 0.8},
    )
