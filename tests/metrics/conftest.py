import pytest
import torch
from torch import nn


class Stored(nn.Module):
    """Gives stored scores: the row of every x, which are numbers of rows."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(torch.as_tensor(scores))

    def forward(self, x):
        return self.scores[x]


@pytest.fixture
def stored():
    """Makes a model of scores (N, classes) and its data, of labels (N,)."""

    def make(scores, labels=None):
        model = Stored(scores)
        n = len(model.scores)
        return model, (torch.arange(n), torch.zeros(n, dtype=torch.int64) if labels is None else labels)

    return make
