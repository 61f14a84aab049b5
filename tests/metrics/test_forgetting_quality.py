import itertools
import math

import numpy as np
import pytest
import torch

from unlearnx.metrics import forgetting_quality

DELTA = 1e-5


def attack_epsilon(fpr, fnr):
    """As the competition's code counts one attack."""
    if fpr == 0 and fnr == 0:
        return math.inf
    if fpr == 0 or fnr == 0:
        return 0
    terms = [(1 - DELTA - fpr, fnr), (1 - DELTA - fnr, fpr)]
    return max([0.0] + [math.log(a / b) for a, b in terms if a > 0])


def slow_epsilon(unlearned, retrained):
    """Every attack, one after the other: both directions of a threshold, inside and outside of two."""
    values = np.unique(np.concatenate([unlearned, retrained]))
    cuts = [-np.inf, *(values[1:] + values[:-1]) / 2, np.inf]
    best = 0
    for low, high in itertools.combinations(cuts, 2):
        inside = [(low < t) & (t < high) for t in (unlearned, retrained)]
        for positive in ([inside[0], inside[1]], [~inside[0], ~inside[1]]):
            best = max(best, attack_epsilon(positive[1].mean(), (~positive[0]).mean()))
    return best


@pytest.mark.parametrize("counts", [(9, 9), (8, 5), (2, 3)])
@pytest.mark.parametrize("ties", [False, True])
def test_against_loops(counts, ties):
    unlearned, retrained = (2 * torch.randn(n, 12) for n in counts)
    unlearned += torch.linspace(0, 3, 12)
    if ties:
        unlearned, retrained = unlearned.round(), retrained.round()
    result = forgetting_quality(unlearned, retrained)
    expected = [slow_epsilon(u, r) for u, r in zip(unlearned.T.numpy(), retrained.T.numpy(), strict=True)]
    assert result.epsilon.tolist() == pytest.approx(expected)
    points = [0 if math.isinf(e) else 2.0 ** -math.floor(2 * e) for e in expected]
    assert result.points.tolist() == points
    assert result.quality == pytest.approx(np.mean(points))


def competition_epsilon(unlearned, retrained):
    """The rules of the competition's code, one attack after the other, on a grid of a hundredth."""
    positive, negative = (
        (retrained, unlearned) if np.median(retrained) > np.median(unlearned) else (unlearned, retrained)
    )
    low, high = min(positive.min(), negative.min()), max(positive.max(), negative.max())
    best = 0
    for threshold in np.linspace(low, high, math.ceil((high - low) * 100)):
        best = max(best, attack_epsilon((negative >= threshold).mean(), (positive < threshold).mean()))
    if np.ptp(positive) >= np.ptp(negative):
        positive, negative = negative, positive
    width = np.ptp(positive)
    for right in np.linspace(positive.max() - 2, positive.max() + 2, 400):
        left = np.linspace(right - width - 2, right - width + 2, 400)[:, None]
        fpr = ((left <= negative) & (negative <= right)).mean(1)
        fnr = 1 - ((left <= positive) & (positive <= right)).mean(1)
        best = max(best, *map(attack_epsilon, fpr, fnr))
    return best


def test_competition_against_loops():
    """Counts are powers of 2, whose shares are exact."""
    unlearned, retrained = 3 * torch.randn(16, 3).double(), 4 * torch.randn(16, 3).double()
    unlearned += torch.tensor([0, 2, -2])
    expected = [competition_epsilon(u, r) for u, r in zip(unlearned.T.numpy(), retrained.T.numpy(), strict=True)]
    result = forgetting_quality(unlearned, retrained, variant="competition")
    assert result.epsilon.tolist() == pytest.approx(expected)
    assert (result.epsilon <= forgetting_quality(unlearned, retrained).epsilon).all()


def test_by_hand():
    unlearned = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0], [4.0, 4.0, 4.0]])
    retrained = torch.tensor([[5.0, 1.0, 3.5], [6.0, 2.0, 5.0], [7.0, 3.0, 6.0], [8.0, 4.0, 7.0]])
    epsilon = forgetting_quality(unlearned, retrained, delta=0).epsilon
    assert epsilon[0] == math.inf  # told apart by a threshold
    # Equal values, which an interval holds as many of as of the others, and another with a quarter or three quarters.
    assert epsilon[1] == 0
    # Below 3.25: FPR 0. Below 3.75: FPR 1/4, FNR 1/4, so ln(3/4 / (1/4)).
    assert epsilon[2] == pytest.approx(math.log(3))


def test_narrow_distributions_are_told_apart():
    """Two thresholds find unlearned models that agree too well, which one threshold cannot."""
    retrained = torch.linspace(-1, 1, 64)[:, None]
    unlearned = torch.linspace(1e-4, 2e-4, 64)[:, None]
    for variant in ("exhaustive", "competition"):
        assert forgetting_quality(unlearned, retrained, variant=variant).quality == 0


@pytest.mark.parametrize(("variant", "ceiling"), [("exhaustive", 0.05), ("competition", 0.17)])
def test_sizes_of_the_competition(variant, ceiling):
    """512 models of each kind: what cannot be told apart has the quality that the documentation gives for it."""
    alike = forgetting_quality(torch.randn(512, 40), torch.randn(512, 40), variant=variant).quality
    apart = forgetting_quality(torch.randn(512, 40) + 2, torch.randn(512, 40), variant=variant).quality
    assert alike == pytest.approx(ceiling, rel=0.4)
    assert alike > 2 * apart
    assert forgetting_quality(torch.zeros(512, 4), torch.zeros(512, 4), variant=variant).quality == 1


def test_order_does_not_matter():
    unlearned, retrained = torch.randn(20, 8), torch.randn(30, 8)
    epsilon = forgetting_quality(unlearned, retrained).epsilon
    assert torch.allclose(epsilon, forgetting_quality(unlearned.flip(0), retrained).epsilon)
    assert torch.allclose(epsilon, forgetting_quality(retrained, unlearned).epsilon)
    assert torch.allclose(epsilon, forgetting_quality(-unlearned, -retrained).epsilon)


def test_score():
    result = forgetting_quality(torch.zeros(4, 2), torch.zeros(4, 2))
    assert result.score(0.9, 1.0, 0.8, 0.5) == pytest.approx(0.9 * 1.6)
    with pytest.raises(ValueError, match="retain_reference is 0, expected an accuracy"):
        result.score(0.9, 0, 0.8, 0.5)
    with pytest.raises(ValueError, match="test is 80, expected an accuracy"):
        result.score(0.9, 1.0, 80, 0.5)


def test_errors():
    a = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"unlearned: has shape \[4\], expected \(models, samples\)"):
        forgetting_quality(a[:, 0], a)
    with pytest.raises(ValueError, match=r"retrained: has shape \[1, 2\], expected .* at least two models"):
        forgetting_quality(a, a[:1])
    with pytest.raises(ValueError, match="retrained: has 1 samples, expected 2"):
        forgetting_quality(a, a[:, :1])
    with pytest.raises(ValueError, match="unlearned: has values that are NaN or infinite"):
        forgetting_quality(a * torch.nan, a)
    with pytest.raises(ValueError, match="retrained: has values that are NaN or infinite"):
        forgetting_quality(a, a + torch.inf, variant="competition")
    with pytest.raises(ValueError, match="variant is 'grid', expected one of 'exhaustive', 'competition'"):
        forgetting_quality(a, a, variant="grid")
    with pytest.raises(ValueError, match=r"delta is 1, expected a number in \[0, 1\)"):
        forgetting_quality(a, a, delta=1)
