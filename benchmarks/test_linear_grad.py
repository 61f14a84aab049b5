"""`linear_grad_diff`: per-sample differences in one pass, against their composition from torch's products."""

import pytest
import torch

from unlearnx.ops import linear_grad_diff


def problem(n, outputs, inputs, device):
    return [torch.randn(n, k, device=device) for k in (inputs, outputs, inputs, outputs)]


@pytest.mark.headline
@pytest.mark.benchmark(group="linear_grad_diff")
def test_every_sample(compare, device):
    x, dy, x_new, dy_new = problem(256, 128, 512, device)
    compare.run(
        lambda: linear_grad_diff(x, dy, x_new, dy_new, reduction="none"),
        {
            "two einsums": lambda: torch.einsum("no,ni->noi", dy_new, x_new) - torch.einsum("no,ni->noi", dy, x),
            "baddbmm": lambda: torch.baddbmm(
                torch.bmm(dy_new.unsqueeze(2), x_new.unsqueeze(1)), dy.unsqueeze(2), x.unsqueeze(1), alpha=-1
            ),
        },
        claims={"two einsums": 1, "baddbmm": 1},
    )


@pytest.mark.benchmark(group="linear_grad_diff")
def test_sum(compare, device):
    """The sum is a product of the device's BLAS on both sides: ours must not cost more."""
    x, dy, x_new, dy_new = problem(4096, 512, 2048, device)
    compare.run(
        lambda: linear_grad_diff(x, dy, x_new, dy_new),
        {"two products": lambda: torch.addmm(dy_new.T @ x_new, dy.T, x, alpha=-1)},
        claims={"two products": 0.9},
    )
