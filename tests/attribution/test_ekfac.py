"""Influence with Kronecker factors against a dense inverse and the gradients of single samples."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.curvature.zoo import build, sample_gradients
from unlearnx.attribution import ekfac, ekfac_influence, ekfac_self_influence
from unlearnx.curvature import EKFAC


def flat(v):
    return torch.cat([t.flatten(1) for t in v.values()], 1)


def reference(model, x, y, queries, damping, factors):
    """-g_q^T (F + damping)^-1 g_z / N with F as a dense matrix."""
    params = dict(model.named_parameters())
    size = sum(p.numel() for p in params.values())
    units = torch.eye(size, dtype=torch.float64).split([p.numel() for p in params.values()], 1)
    whole = flat(
        factors.matvec({n: u.view(size, *p.shape) for (n, p), u in zip(params.items(), units, strict=True)}, damping)
    )
    rows, of_queries = (flat(sample_gradients(model, F.cross_entropy, *pair)) for pair in ((x, y), queries))
    return -of_queries @ torch.linalg.solve(whole, rows.T) / len(x), rows


@pytest.mark.parametrize("name", ["mlp", "residual", "attention"])
def test_equals_the_dense_inverse(name, monkeypatch):
    model, x, y = build(name)
    queries = x[:4].flip(0) + 0.1, y[:4]
    factors = EKFAC().fit(model, F.cross_entropy, (x, y), fisher_type="exact")
    expected, rows = reference(model, x, y, queries, 0.1, factors)
    monkeypatch.setattr(ekfac, "STORED_BYTES", 3 * 8 * rows.shape[1])  # three gradients at a time
    scores = ekfac_influence(model, F.cross_entropy, (x, y), queries, factors=factors, damping=0.1, batch_size=4)
    torch.testing.assert_close(scores, expected, rtol=1e-8, atol=1e-12)
    own = ekfac_self_influence(model, F.cross_entropy, (x, y), factors=factors, damping=0.1)
    alone, _ = reference(model, x, y, (x, y), 0.1, factors)
    torch.testing.assert_close(own, -alone.diagonal(), rtol=1e-8, atol=1e-12)


def test_defaults():
    """Factors are fitted on the training data, and each layer is damped by a tenth of its mean eigenvalue."""
    model, x, y = build("mlp")
    scores = ekfac_influence(model, F.cross_entropy, (x, y), (x[:2], y[:2]))
    factors = EKFAC().fit(model, F.cross_entropy, (x, y), generator=torch.Generator().manual_seed(0))
    gradients = sample_gradients(model, F.cross_entropy, x, y)
    expected = torch.zeros(2, 9, dtype=torch.float64)
    for block in factors.blocks:
        m = block.out.T @ block.layer.matrices(gradients) @ block.into
        expected -= torch.einsum("qoi,noi->qn", m[:2] / (block.values + 0.1 * block.values.mean()), m) / 9
    torch.testing.assert_close(scores, expected, rtol=1e-8, atol=1e-12)


def test_sign():
    """A copy of the query with a wrong label is to blame, one with the right label helps."""
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    y = (x[:, 0] > 0).long()
    x, y = torch.cat([x, x[:1], x[:1]]), torch.cat([y, 1 - y[:1], y[:1]])
    scores = ekfac_influence(nn.Linear(5, 2), F.cross_entropy, (x, y), (x[:1], y[:1]))[0]
    assert scores[60] > 0 > scores[61]


def test_mislabelled_samples_have_high_self_influence():
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    y = (x[:, 0] > 0).long()
    wrong = torch.randperm(200)[:20]
    y[wrong] = 1 - y[wrong]
    model = nn.Linear(5, 2)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(200):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    top = ekfac_self_influence(model, F.cross_entropy, (x, y)).topk(20).indices
    assert len(set(top.tolist()) & set(wrong.tolist())) >= 14


def test_bad_arguments():
    model, x, y = build("mlp")
    with pytest.raises(ValueError, match="damping is 0, expected a finite number > 0, or None"):
        ekfac_influence(model, F.cross_entropy, (x, y), (x, y), damping=0)
    factors = EKFAC().fit(model, F.cross_entropy, (x, y), params="last:2")
    with pytest.raises(ValueError, match=r"params: is 'last:4', expected those of the factors: 2\.weight, 2\.bias"):
        ekfac_influence(model, F.cross_entropy, (x, y), (x, y), params="last:4", factors=factors)


def test_stale_factors_are_refused():
    model, x, y = build("mlp")
    factors = EKFAC().fit(model, F.cross_entropy, (x, y), params="last:2")
    message = "factors: were fitted for a model with other parameters or buffers, or this one has changed since"
    with pytest.raises(ValueError, match=message):
        ekfac_self_influence(nn.Linear(6, 3).double(), F.cross_entropy, (x, y), factors=factors)
    with torch.no_grad():
        model[0].weight.mul_(1.01)
    with pytest.raises(ValueError, match=message):
        ekfac_influence(model, F.cross_entropy, (x, y), (x, y), factors=factors)
