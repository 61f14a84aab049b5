"""A model is tried once for what its settings decide; what they no longer decide is tried again.

A trial calls it with the samples, with the first alone, and with the others.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import losses
from unlearnx._calls import check_call


class Counted(nn.Linear):
    """Tells the samples of its calls."""

    noisy = False

    def forward(self, x):
        SEEN.append(len(x))
        y = super().forward(x)
        return y + torch.randn(3) if self.noisy else y


SEEN: list[int] = []


def seen(model, x, loss=F.cross_entropy):
    SEEN.clear()
    check_call(model, loss, (x, torch.arange(len(x)) % 3))
    return list(SEEN)


def test_a_model_is_compared_with_itself_once():
    model, x = Counted(4, 3), torch.randn(6, 4)
    assert seen(model, x) == [3, 1, 2]
    assert seen(model, x) == [1]
    with torch.no_grad():
        model.weight.zero_()
    assert seen(model, x, losses.cross_entropy) == [1]
    assert seen(Counted(4, 3), x) == [3, 1, 2]
    with pytest.raises(ValueError, match="loss_fn: returned shape"):
        seen(model, x, lambda output, y: output.new_zeros(7))


def test_other_settings_are_tried_anew():
    model, x = Counted(4, 3), torch.randn(6, 4)
    seen(model, x)
    model.noisy = True
    with pytest.raises(ValueError, match="gave other outputs"):
        seen(model, x)
    model.noisy = False
    model.eval()
    assert seen(model, x)[0] == 3
    model.register_forward_hook(lambda *_: None)
    assert seen(model, x)[0] == 3
    assert seen(model.double(), x.double())[0] == 3


def test_what_was_not_compared_is_not_remembered():
    model, x = Counted(4, 3), torch.full((6, 4), torch.inf)
    assert seen(model, x) == seen(model, x) == [3]
    assert seen(model, torch.randn(6, 4)) == [3, 1, 2]
