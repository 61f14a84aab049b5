"""The layers' own blocks of the benchmark are those of the dense matrix."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.layer_blocks import exact_blocks, products_needed
from unlearnx.curvature import CurvatureOperator


def test_exact_blocks():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double().eval()
    head[2].running_mean.normal_()
    head[2].running_var.uniform_(0.5, 2)
    head[2].weight.data.normal_()
    x = torch.randn(7, 6, dtype=torch.float64)
    operator = CurvatureOperator(head, F.cross_entropy, (x, torch.arange(7) % 3), damping=0.1)
    whole = operator.rows.products(torch.eye(operator.shape[0], dtype=torch.float64))
    bounds = [0, 35, 45, 63]
    blocks = torch.block_diag(*(whole[a:b, a:b] for a, b in pairwise(bounds)))
    apply = exact_blocks(head, x, 0.1)
    v = torch.randn(63, dtype=torch.float64)
    torch.testing.assert_close(apply(v), torch.linalg.solve(blocks, v), rtol=1e-9, atol=1e-10)
    assert products_needed(lambda row: blocks @ row, apply, v) == 1
    assert products_needed(lambda row: blocks @ row, lambda row: row, v) > 3
