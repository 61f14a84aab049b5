"""Every measure that runs a model, on every device, against float64 on the CPU."""

import copy

import pytest
import torch
from torch import nn

from unlearnx import metrics


@pytest.fixture
def study(device):
    model, other = (nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)) for _ in range(2))
    data = torch.randn(60, 6), torch.randint(3, (60,))
    moved = [copy.deepcopy(m).to(device) for m in (model, other)]
    return (model.double(), other.double(), (data[0].double(), data[1])), (*moved, data)


@pytest.mark.parametrize("name", ["probabilities", "logit_confidence"])
def test_outputs(study, name):
    (model, _, data), (moved, _, moved_data) = study
    result = getattr(metrics, name)(moved, moved_data)
    assert result.device.type == "cpu"
    assert torch.allclose(result.double(), getattr(metrics, name)(model, data).double(), atol=1e-4)


@pytest.mark.parametrize("name", ["activation_distance", "js_divergence", "zrf"])
def test_distances(study, name):
    (*reference, data), (*moved, moved_data) = study
    expected = getattr(metrics, name)(*reference, data)
    assert getattr(metrics, name)(*moved, moved_data) == pytest.approx(expected, rel=1e-3)
    # The second model elsewhere than the first.
    assert getattr(metrics, name)(moved[0], reference[1].float(), moved_data) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("protocol", ["salun", "ssd", "starter_kit"])
def test_attacks(study, protocol):
    def run(model, data):
        forget, retain, test = (tuple(t[i : i + 20] for t in data) for i in (0, 20, 40))
        return metrics.mia(model, forget=forget, retain=retain, test=test, protocol=protocol)

    (model, _, data), (moved, _, moved_data) = study
    assert run(moved, moved_data) == pytest.approx(run(model, data), abs=0.051)  # one sample may be on the border


def test_the_others(study):
    (model, other, data), (moved, moved_other, moved_data) = study
    time = metrics.relearn_time(moved, moved, moved_other, moved_data, margin=0.01, lr=0.01)
    expected = metrics.relearn_time(model, model, other, data, margin=0.01, lr=0.01)
    assert time.steps == expected.steps == 0
    assert time.reference_steps == pytest.approx(expected.reference_steps, abs=2)
    expected = metrics.interclass_confusion(model, data, (0, 1))
    assert metrics.interclass_confusion(moved, moved_data, (0, 1)) == pytest.approx(expected)
    assert metrics.over_forgetting(moved, moved, moved_data) is None
