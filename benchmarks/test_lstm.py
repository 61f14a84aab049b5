"""`unlearnx.nn.LSTM` trains no slower than `torch.nn.LSTM`; on a GPU it stands beside cuDNN, and torch without it.

The character LSTM: 256 sequences of 24 steps, 64 inputs, 256 units. cuDNN has no second derivatives, so that code which
needs them turns it off.
"""

import pytest
import torch

import unlearnx.nn

STEPS, ROWS, INPUTS, UNITS = 24, 256, 64, 256


def passes(layer, x):
    """Forward and backward, from the last state on."""

    def run():
        layer.zero_grad()
        layer(x)[0][-1].square().sum().backward()

    return run


@pytest.mark.headline
@pytest.mark.benchmark(group="lstm")
def test_forward_backward(compare, device):
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(INPUTS, UNITS).to(device)
    ours = unlearnx.nn.twice_differentiable(theirs)
    x = torch.randn(STEPS, ROWS, INPUTS, device=device, requires_grad=True)
    others = {"torch.nn.LSTM": passes(theirs, x)}
    if device == "cuda":
        run = passes(theirs, x)

        def without_cudnn():
            with torch.backends.cudnn.flags(enabled=False):
                run()

        others["without cuDNN"] = without_cudnn
    # But for the noise of two cores.
    compare.run(passes(ours, x), others, claims={"torch.nn.LSTM": 0.95})


@pytest.mark.headline
@pytest.mark.benchmark(group="lstm")
def test_second_backward(compare, device):
    """A gradient and its own, which torch has for its LSTM on the CPU and without cuDNN alone."""
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(INPUTS, UNITS).to(device)
    ours = unlearnx.nn.twice_differentiable(theirs)
    x = torch.randn(STEPS, ROWS, INPUTS, device=device)
    weights = list(theirs.parameters())
    v = [torch.randn_like(w) for w in weights]

    def twice(layer):
        def run():
            with torch.backends.cudnn.flags(enabled=False):
                loss = layer(x)[0][-1].square().sum()
                torch.autograd.grad(torch.autograd.grad(loss, weights, create_graph=True), weights, v)

        return run

    compare.run(twice(ours), {"torch.nn.LSTM": twice(theirs)}, rounds=5, warmups=1, claims={"torch.nn.LSTM": 1})
