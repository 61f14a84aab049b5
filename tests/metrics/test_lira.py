import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm
from sklearn.metrics import roc_auc_score, roc_curve

from unlearnx.metrics import lira

MODELS, EXAMPLES = 40, 120


def shadow_study(models=MODELS, samples=EXAMPLES, effect=1.0):
    """Confidences that training with a sample raises; each sample is in half of the models, drawn for it alone."""
    inside = torch.stack([torch.randperm(models) % 2 == 0 for _ in range(samples)], 1)
    members = torch.arange(samples) % 2 == 0
    ease, spread = 2 * torch.randn(samples), 0.5 + torch.rand(samples)
    shadow = ease + spread * torch.randn(models, samples) + effect * inside
    confidence = ease + spread * torch.randn(samples) + effect * members
    return confidence, shadow, inside, members


def gaussians(confidence, shadow, chosen, shared):
    """Mean, standard deviation and log-density by straightforward loops."""
    c, s, m = confidence.double().numpy(), shadow.double().numpy(), chosen.numpy()
    groups = [s[m[:, i], i] for i in range(len(c))]
    mean = np.array([g.mean() for g in groups])
    deviation = np.array([g.std(ddof=1) for g in groups]) if not shared else None
    if shared:
        squares = sum(((g - g.mean()) ** 2).sum() for g in groups)
        deviation = np.full(len(c), math.sqrt(squares / sum(len(g) - 1 for g in groups)))
    return (c - mean) / deviation, norm.logpdf(c, mean, deviation)


def test_online_against_scipy():
    confidence, shadow, inside, members = shadow_study()
    result = lira(confidence, shadow, inside, members)
    expected = gaussians(confidence, shadow, inside, False)[1] - gaussians(confidence, shadow, ~inside, False)[1]
    assert result.online
    assert not result.shared_variance
    assert np.allclose(result.scores, expected)
    assert result.auc == pytest.approx(roc_auc_score(members, expected))


def test_few_models_share_a_variance():
    confidence, shadow, inside, members = shadow_study(models=4)
    result = lira(confidence, shadow, inside, members)
    expected = gaussians(confidence, shadow, inside, True)[1] - gaussians(confidence, shadow, ~inside, True)[1]
    assert result.shared_variance
    assert np.allclose(result.scores, expected)


@pytest.mark.parametrize("models", [5, 20])
def test_offline_against_scipy(models):
    confidence, shadow, inside, members = shadow_study(models)
    result = lira(confidence, shadow, torch.zeros_like(inside), members)
    expected = gaussians(confidence, shadow, torch.ones_like(inside), models < 8)[0]
    assert not result.online
    assert result.shared_variance == (models < 8)
    assert np.allclose(result.scores, expected)


def test_one_example_without_models_takes_the_attack_offline():
    confidence, shadow, inside, members = shadow_study()
    inside[:, 3] = False
    assert not lira(confidence, shadow, inside, members).online


def test_auc_interval_against_a_loop():
    confidence, shadow, inside, members = shadow_study()
    scores = gaussians(confidence, shadow, ~inside, False)[0].round(1)  # some are equal
    rng, own, others = np.random.default_rng(0), scores[members.numpy()], scores[~members.numpy()]
    areas = [
        roc_auc_score(
            members.sort(descending=True).values, np.concatenate([rng.choice(t, len(t)) for t in (own, others)])
        )
        for _ in range(300)
    ]
    flat = torch.from_numpy(scores)
    result = lira(flat, torch.stack([torch.ones_like(flat), -torch.ones_like(flat)]), inside[:2] & False, members)
    assert result.auc == pytest.approx(roc_auc_score(members, scores))
    assert result.auc_interval == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.02)
    again = lira(flat, torch.stack([torch.ones_like(flat), -torch.ones_like(flat)]), inside[:2] & False, members)
    assert again.auc_interval == result.auc_interval


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.29, 1.0])
def test_tpr_against_scikit_learn(fpr):
    confidence, shadow, inside, members = shadow_study(samples=200)
    result = lira(confidence, shadow, inside, members)
    rates = roc_curve(members, result.scores, drop_intermediate=False)
    value, low, high = result.tpr(fpr)
    assert value == pytest.approx(rates[1][rates[0] <= fpr + 1e-12].max())
    found, n = round(value * 100), 100
    assert low == pytest.approx(beta.ppf(0.025, found, n - found + 1) if found else 0)
    assert high == pytest.approx(beta.ppf(0.975, found + 1, n - found) if found < n else 1)


def test_equal_scores_are_not_told_apart():
    members = torch.tensor([True, False] * 10)
    result = lira(torch.zeros(20), torch.tensor([[1.0], [-1.0]]).expand(2, 20), torch.zeros(2, 20).bool(), members)
    assert result.auc == 0.5
    assert result.auc_interval == (0.5, 0.5)
    assert result.tpr(0.1).value == 0


def test_chance_and_certainty():
    assert lira(*shadow_study(samples=600, effect=0)).auc == pytest.approx(0.5, abs=0.06)
    result = lira(*shadow_study(effect=50))
    assert result.auc == 1
    assert result.tpr(0).value == 1
    low, high = lira(*shadow_study()).auc_interval
    assert 0.5 < low < high < 1


def test_models_that_all_agree():
    """Variances of zero: the scores stay finite."""
    confidence, _, inside, members = shadow_study()
    result = lira(confidence, inside.float(), inside, members)
    assert result.scores.isfinite().all()


def test_errors(monkeypatch):
    confidence, shadow, inside, members = shadow_study()
    with pytest.raises(ValueError, match=r"shadow_confidence: has shape \[120\], expected \(models, samples\)"):
        lira(confidence, shadow[0], inside, members)
    with pytest.raises(ValueError, match=r"confidence: has shape \[119\], expected \[120\]"):
        lira(confidence[1:], shadow, inside, members)
    with pytest.raises(ValueError, match=r"shadow_in: has shape \[39, 120\], expected \[40, 120\]"):
        lira(confidence, shadow, inside[1:], members)
    with pytest.raises(ValueError, match=r"members: is torch\.int64, expected bool"):
        lira(confidence, shadow, inside, members.long())
    with pytest.raises(ValueError, match="members: holds 120 of 120, expected at least one member and one non-member"):
        lira(confidence, shadow, inside, members | True)
    with pytest.raises(ValueError, match="shadow_confidence: has values that are NaN or infinite"):
        lira(confidence, shadow / 0, inside, members)
    with pytest.raises(ValueError, match="no sample has two models with it or two without it"):
        lira(confidence, shadow[:1], inside[:1] & False, members)
    everywhere = inside.clone()
    everywhere[:, 5] = True
    with pytest.raises(ValueError, match="shadow_in: sample 5 is in every shadow model"):
        lira(confidence, shadow, everywhere, members)
    result = lira(confidence, shadow, inside, members)
    with pytest.raises(ValueError, match=r"fpr is 2, expected a share in \[0, 1\]"):
        result.tpr(2)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"LiRA.tpr needs SciPy: pip install 'unlearnx\[experiments\]'"):
        result.tpr(0.1)
