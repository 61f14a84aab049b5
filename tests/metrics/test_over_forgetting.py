import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from unlearnx.metrics import over_forgetting


@pytest.fixture
def models(stored):
    """Makes two models and their data, from how often both, only the first, only the second and none is right."""

    def make(both, first, second, neither):
        right = torch.tensor([[1.0, 0.0]])
        wrong = right.flip(1)
        a = torch.cat([right.repeat(both + first, 1), wrong.repeat(second + neither, 1)])
        b = torch.cat([t.repeat(n, 1) for t, n in ((right, both), (wrong, first), (right, second), (wrong, neither))])
        model, data = stored(a)
        return model, stored(b)[0], data

    return make


def test_by_hand(models):
    """p = P(X >= second) for X ~ Binomial(first + second, 1/2): 5 of 5 is 1/32, 4 of 4 is 1/16, 8 of 9 is 10/512."""
    assert over_forgetting(*models(10, 0, 4, 6)) is None
    warning = over_forgetting(*models(10, 0, 5, 5))
    assert "50.0% of the forget set right, a retrained one 75.0%" in warning
    assert "20 samples: p = 0.031" in warning
    assert over_forgetting(*models(10, 0, 4, 6), confidence=0.9)
    assert "p = 0.02)" in over_forgetting(*models(10, 1, 8, 1))
    assert over_forgetting(*models(10, 1, 8, 1), confidence=0.99) is None


def test_no_warning_where_the_model_is_as_good_or_better(models):
    model, _, data = models(10, 0, 20, 5)
    assert over_forgetting(model, model, data) is None
    assert over_forgetting(*models(0, 50, 0, 0)) is None
    assert over_forgetting(*models(0, 50, 50, 0)) is None
    assert over_forgetting(*models(5, 0, 0, 0)) is None


def test_samples_are_paired_in_a_loader_that_shuffles(models):
    model, retrained, data = models(20, 5, 18, 7)
    loader = DataLoader(TensorDataset(*data), batch_size=8, shuffle=True)
    assert over_forgetting(model, retrained, loader) == over_forgetting(model, retrained, data)


def test_labels_of_other_kinds():
    """Positions without a label do not count; logits of a yes are right by their sign."""
    y = torch.arange(24).view(12, 2) % 3
    unlabelled = y.clone()
    unlabelled[:, 1] = -100

    class Answers(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.values = torch.nn.Parameter(values)

        def forward(self, index):
            return SimpleNamespace(logits=self.values[index])

    right, wrong = (Answers(torch.nn.functional.one_hot(t, 3).double()) for t in (y, (y + 1) % 3))
    index = torch.arange(12)
    assert "McNemar's exact test on 24 samples" in over_forgetting(wrong, right, (index, y))
    assert "McNemar's exact test on 12 samples" in over_forgetting(wrong, right, (index, unlabelled))
    with pytest.raises(ValueError, match="forget: no label counts"):
        over_forgetting(wrong, right, (index, torch.full_like(y, -100)))
    yes = (torch.arange(12) % 2).double()
    sure = Answers(2 * yes - 1), Answers(1 - 2 * yes)
    assert over_forgetting(*sure, (index, yes)) is None
    assert "0.0% of the forget set right, a retrained one 100.0%" in over_forgetting(*sure[::-1], (index, yes))
    with pytest.raises(ValueError, match="forget: labels are"):
        over_forgetting(torch.nn.Linear(6, 3), torch.nn.Linear(6, 3), (torch.randn(24, 6), torch.zeros(24, 2).long()))


def test_errors(models, monkeypatch):
    with pytest.raises(ValueError, match="confidence is 95, expected a number between 0 and 1"):
        over_forgetting(*models(1, 1, 1, 1), confidence=95)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"over_forgetting needs SciPy: pip install 'unlearnx\[experiments\]'"):
        over_forgetting(*models(1, 1, 1, 1))
