import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from unlearnx.metrics import activation_distance, js_divergence, zrf


@pytest.fixture
def pair(stored):
    a, data = stored(2 * torch.randn(40, 5))
    b, _ = stored(2 * torch.randn(40, 5))
    return a, b, data


def softmax(model):
    return model.scores.detach().double().softmax(1)


def test_activation_distance_against_numpy(pair):
    a, b, data = pair
    expected = np.linalg.norm(softmax(a).numpy() - softmax(b).numpy(), axis=1).mean()
    assert activation_distance(a, b, data, batch_size=7) == pytest.approx(expected)


def test_js_divergence_against_scipy(pair):
    a, b, data = pair
    expected = (jensenshannon(softmax(a), softmax(b), axis=1) ** 2).mean()  # SciPy gives the square root, in nats
    assert js_divergence(a, b, data, batch_size=7) == pytest.approx(expected)
    assert js_divergence(b, a, data) == pytest.approx(expected)
    assert zrf(a, b, data) == pytest.approx(1 - expected)


def test_bad_teacher_against_the_published_formula(pair):
    a, b, data = pair
    p, q = softmax(a), softmax(b)
    m = (p + q) / 2
    terms = 0.5 * F.kl_div(p.log(), m, reduction="none") + 0.5 * F.kl_div(q.log(), m, reduction="none")
    expected = terms.mean()  # the default reduction of its torch
    assert js_divergence(a, b, data, variant="bad_teacher", batch_size=7) == pytest.approx(expected.item())
    assert zrf(a, b, data, variant="bad_teacher") == pytest.approx(1 - expected.item())
    assert js_divergence(a, b, data, variant="bad_teacher") != pytest.approx(js_divergence(a, b, data), rel=0.1)


def test_equal_models(pair):
    a, _, data = pair
    assert activation_distance(a, a, data) == 0
    for variant in ("standard", "bad_teacher"):
        assert js_divergence(a, a, data, variant=variant) == pytest.approx(0, abs=1e-15)
        assert zrf(a, a, data, variant=variant) == pytest.approx(1)


def test_certain_predictions(stored):
    """Probabilities that round to 0, and such that are 0."""
    for low in (-2000.0, -torch.inf):
        a, data = stored([[0.0, low, low]])
        b, _ = stored([[low, 0.0, low]])
        assert activation_distance(a, b, data) == pytest.approx(math.sqrt(2))
        assert js_divergence(a, b, data) == pytest.approx(math.log(2))
    a, data = stored([[0.0, -2000.0]])
    b, _ = stored([[-2000.0, 0.0]])
    # 1/2 KL(m||p) = 1/2 (1/2 ln(1/2) + 1/2 (ln(1/2) + 2000)), twice, over two classes.
    assert js_divergence(a, b, data, variant="bad_teacher") == pytest.approx((1000 - math.log(2)) / 2)


def test_both_models_see_the_same_samples():
    """A loader that shuffles gives new batches with every pass: there is one only."""
    a, b = nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).train()
    x, y = torch.randn(30, 3), torch.zeros(30)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    for measure in (activation_distance, js_divergence, zrf):
        assert measure(a, b, loader) == pytest.approx(measure(a, b, (x, y)))
    assert b.training
    assert b[1].training


def test_errors(stored, pair):
    a, b, data = pair
    with pytest.raises(ValueError, match="variant is 'js', expected one of 'standard', 'bad_teacher'"):
        js_divergence(a, b, data, variant="js")
    other, _ = stored(torch.randn(40, 3))
    with pytest.raises(ValueError, match=r"b: returned an output of shape \[40, 3\], expected \[40, 5\]"):
        activation_distance(a, other, data)
    with pytest.raises(ValueError, match="data: is empty"):
        js_divergence(a, b, (data[0][:0], data[1][:0]))
