"""Memorisation of single samples: against SciPy, and on a network that learns a wrong label by heart."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from torch import nn

from unlearnx.metrics import memorization_scores, unlearned_shadows
from unlearnx.models import Training


def test_scores_and_intervals_are_those_of_welch():
    generator = torch.Generator().manual_seed(0)
    confidence = 3 * torch.randn(16, 12, generator=generator, dtype=torch.float64)
    trained_on = torch.rand(16, 12, generator=generator) < 0.4
    found = memorization_scores(confidence, trained_on)
    p = 1 / (1 + np.exp(-confidence.numpy()))
    for i in range(12):
        inside, outside = p[trained_on[:, i].numpy(), i], p[~trained_on[:, i].numpy(), i]
        assert float(found.score[i]) == pytest.approx(inside.mean() - outside.mean(), rel=1e-9)
        interval = ttest_ind(inside, outside, equal_var=False).confidence_interval(0.95)
        assert float(found.low[i]) == pytest.approx(max(-1, interval.low), rel=1e-9)
        assert float(found.high[i]) == pytest.approx(min(1, interval.high), rel=1e-9)


def test_models_that_agree_leave_no_doubt():
    trained_on = torch.arange(6)[:, None] % 2 == torch.zeros(1, 2)
    found = memorization_scores(torch.where(trained_on, 40.0, torch.tensor([40.0, -40.0])), trained_on)
    for values in found:
        torch.testing.assert_close(values, torch.tensor([0.0, 1.0], dtype=torch.float64))


def train(dataset, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))
    Training(80, lr=1e-2, batch_size=40, seed=seed).run(model, dataset)
    return model.eval()


def test_wrong_labels_are_memorised():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 3
    x = 2 * torch.eye(3, 6)[y] + 0.7 * torch.randn(80, 6, generator=generator)
    given = torch.where(torch.arange(80) < 4, (y + 1) % 3, y)  # the first four
    shadows = unlearned_shadows(train, lambda model, request: model, (x, given), range(12), models=10)
    found = memorization_scores(shadows.confidence, shadows.unlearned)
    assert found.score[:4].min() > 0.4
    assert (found.low[:4] > 0).sum() >= 3  # ten models leave doubt of one
    assert found.score[4:].mean() < 0.2


@pytest.mark.parametrize(
    ("confidence", "trained_on", "message"),
    [
        (torch.zeros(4), torch.ones(4, dtype=torch.bool), r"confidence: has shape \[4\], expected"),
        (torch.zeros(4, 2), torch.zeros(4, 2), r"trained_on: is torch.float32 of shape \[4, 2\], expected bool \[4, 2"),
        (torch.full((4, 2), torch.nan), torch.zeros(4, 2, dtype=torch.bool), "confidence: has values that are NaN"),
        (torch.zeros(4, 2), torch.arange(4)[:, None] < torch.tensor([2, 3]), "sample 1 has 3 models with it of 4, exp"),
    ],
)
def test_clear_errors(confidence, trained_on, message):
    with pytest.raises(ValueError, match=message):
        memorization_scores(confidence, trained_on)
