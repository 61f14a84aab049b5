"""What tests of methods against their formulas share."""

import pytest
import torch
from torch import nn

from unlearnx import Request


@pytest.fixture
def trained_on(monkeypatch):
    """What a method would have trained on: its data and its loss, instead of any training."""
    found = {}

    def keep(self, work, info, epochs, lr, *, data=None, loss_fn=None, **_):
        found.update(data=data, loss_fn=loss_fn)
        for p in work.model.parameters():
            p.data += 1e-9  # a method that changes nothing is not applied

    monkeypatch.setattr("unlearnx.methods.training_method.TrainedMethod._train", keep)
    return found


@pytest.fixture
def case():
    torch.manual_seed(0)
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.arange(30) % 3
    model, later = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(2))
    forget = torch.tensor([2, 3, 5, 7, 11, 13, 17])
    stays = torch.ones(30, dtype=torch.bool)
    stays[forget] = False
    return model, later, Request.remove((x, y), forget), (x[forget], y[forget]), (x[stays], y[stays])
