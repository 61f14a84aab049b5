"""`fisher_mask_` finds the threshold over the whole list without storing scores: three passes of 8 bytes a value."""

import pytest
import torch

from benchmarks.stream import triad
from unlearnx.ops import fisher_mask_

N = 50_000_000


def scores_of(forget, retain):
    return torch.cat([(f - r).flatten() for f, r in zip(forget, retain, strict=True)])


def sort_out(params, mask):
    for p, m in zip(params, mask.split([p.numel() for p in params]), strict=True):
        p.masked_fill_(m.view_as(p), 0)


def topk(params, forget, retain, ratio):
    scores = scores_of(forget, retain)
    chosen = scores.topk(int(ratio * scores.numel()), sorted=False).indices
    sort_out(params, torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, chosen, True))


def kthvalue(params, forget, retain, ratio):
    scores = scores_of(forget, retain)
    threshold = scores.kthvalue(scores.numel() - int(ratio * scores.numel())).values
    sort_out(params, scores > threshold)


@pytest.mark.benchmark(group="fisher_mask_")
@pytest.mark.parametrize("ratio", [pytest.param(0.02, marks=pytest.mark.headline), 0.2])
def test_fisher_mask(compare, device, ratio):
    sizes = (N // 2, N // 4, N // 4)
    forget, retain = ([torch.randn(n, device=device).mul_(3).exp_() for n in sizes] for _ in range(2))
    params = [[torch.randn(n, device=device) for n in sizes] for _ in range(3)]
    compare.run(
        lambda: fisher_mask_(params[0], forget, retain, ratio),
        {
            "topk": lambda: topk(params[1], forget, retain, ratio),
            "kthvalue": lambda: kthvalue(params[2], forget, retain, ratio),
            "triad x 8/3": triad(N * 8 // 3, device),  # 32 bytes a value: three readings, one writing of parameters
        },
        rounds=5,
        warmups=1,
        claims={"topk": 4, "kthvalue": 4},
    )
