import numpy as np
import pytest
import torch
from scipy.special import logit, softmax
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from unlearnx.metrics import logit_confidence, probabilities


def test_against_scipy(stored):
    scores, labels = 3 * torch.randn(50, 4), torch.randint(4, (50,))
    model, data = stored(scores, labels)
    expected = softmax(scores.double().numpy(), 1)
    p = probabilities(model, data, batch_size=7)
    assert p.dtype == torch.float32
    assert np.allclose(p, expected, atol=1e-7)
    confidence = logit_confidence(model, data, batch_size=7)
    assert confidence.dtype == torch.float64
    assert np.allclose(confidence, logit(expected[np.arange(50), labels]), rtol=1e-9)


def test_confidences_do_not_saturate(stored):
    model, data = stored([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0], [0.0, -torch.inf, 1.0]])
    assert logit_confidence(model, data).tolist() == pytest.approx([200 - np.log(2), -200 - np.log(2), -1.0])


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[2].eval()
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    before, random = {k: t.clone() for k, t in model.state_dict().items()}, torch.get_rng_state()
    probabilities(model, (x, y))
    logit_confidence(model, (x, y))
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(q.grad is None for q in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert [m.training for m in model.modules()] == [True, True, True, False]


def test_loaders():
    model, data = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), (torch.randn(20, 4), torch.randint(3, (20,)))
    loader = DataLoader(TensorDataset(*data), batch_size=6)
    for measure in (probabilities, logit_confidence):
        assert torch.allclose(measure(model, loader), measure(model, data))
    assert torch.allclose(probabilities(model, loader), model.eval()(data[0]).softmax(1))


def test_models_without_parameters():
    x, y = torch.randn(20, 3), torch.randint(3, (20,))
    assert torch.allclose(probabilities(nn.Identity(), (x, y)), x.softmax(1))


def test_autocast():
    model = nn.Linear(4, 3)
    data = torch.randn(20, 4), torch.randint(3, (20,))
    for measure in (probabilities, logit_confidence):
        assert torch.allclose(measure(model, data), measure(model, data, autocast=torch.bfloat16), atol=0.05)


@pytest.mark.parametrize("measure", [probabilities, logit_confidence])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3, 2)])
def test_scores_of_another_shape_are_refused(stored, measure, shape):
    model, data = stored(torch.randn(shape))
    with pytest.raises(ValueError, match=r"model: returned an output of shape .*, expected scores \(N, classes\)"):
        measure(model, data)


@pytest.mark.parametrize("measure", [probabilities, logit_confidence])
def test_scores_that_are_not_finite_are_refused(stored, measure):
    for value in (torch.nan, torch.inf):
        model, data = stored([[0.0, value]])
        with pytest.raises(ValueError, match="model: returned scores that are NaN or infinite"):
            measure(model, data)


def test_labels_are_checked(stored):
    scores = torch.randn(2, 3)
    with pytest.raises(ValueError, match="data: label 3 is out of range for 3 classes"):
        logit_confidence(*stored(scores, torch.tensor([0, 3])))
    with pytest.raises(ValueError, match=r"data: labels are torch.float32 of shape \[2\], expected class indices"):
        logit_confidence(*stored(scores, torch.zeros(2)))
