"""What the scores are for: wrong labels among real digits, found again. Printed with ``pytest -s``."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from unlearnx.attribution import ewc_influence, gradient_shapley, knn_shapley, linear_influence, tmc_shapley
from unlearnx.data import flip_labels, load_digits
from unlearnx.models import Training, digits_cnn

SHARE = 0.2


class Study:
    """A network briefly trained on digits of which a fifth have a wrong label."""

    def __init__(self):
        digits = load_digits()
        self.poison = flip_labels(digits.train_y, int(SHARE * len(digits.train_y)))
        self.train = digits.train_x, self.poison.apply(digits.train_y)
        self.test = digits.test_x, digits.test_y
        torch.manual_seed(0)
        self.model = digits_cnn()
        Training(epochs=15).run(self.model.train(), self.train)
        self.model.eval()
        with torch.no_grad():
            wrong = self.model(self.test[0]).argmax(1) != self.test[1]
        self.failures = tuple(t[wrong] for t in self.test)

    def auroc(self, scores, among=None):
        flipped = torch.zeros(len(self.train[1]), dtype=torch.bool)
        flipped[self.poison.indices] = True
        chosen = slice(None) if among is None else among
        return roc_auc_score(flipped[chosen], scores)


@pytest.fixture(scope="module")
def study():
    return Study()


def found(study, name, scores, among=None):
    area = study.auroc(scores, among)
    print(f"\n{name}: AUROC {area:.3f} for {SHARE:.0%} flipped labels")
    return area


@pytest.mark.parametrize(
    ("influence", "of_failures", "of_all"), [(linear_influence, 0.6, 0.9), (ewc_influence, 0.85, 0.95)]
)
def test_influence(study, influence, of_failures, of_all):
    """On the test points that the model gets wrong, and on all of them, which tells more of every class."""
    for what, points, least in (("failures", study.failures, of_failures), ("test points", study.test, of_all)):
        scores = influence(study.model, F.cross_entropy, study.train, points)
        assert found(study, f"{influence.__name__}, {len(points[0])} {what}", scores) > least


def test_knn_shapley(study):
    (x, y), (x_test, y_test) = study.train, study.test
    assert found(study, "knn_shapley", -knn_shapley(x, y, x_test, y_test)) > 0.9


def subset(study, n):
    among = torch.randperm(len(study.train[1]), generator=torch.Generator().manual_seed(0))[:n]
    return among, (study.train[0][among], study.train[1][among])


def test_tmc_shapley(study):
    """Ridge regression on the pixels of a hundred digits."""
    among, (x, y) = subset(study, 100)
    x, x_test = x.flatten(1), study.test[0].flatten(1)

    def fit(indices):
        a = x[indices]
        return torch.linalg.solve(a.T @ a + 30 * torch.eye(64), a.T @ F.one_hot(y[indices], 10).float())

    def score(weights):
        return (x_test @ weights).argmax(1).eq(study.test[1]).double().mean().item()

    result = tmc_shapley(fit, score, len(y), empty_score=0.1, truncation=0.01, permutations=40)
    assert found(study, "tmc_shapley, 100 points", -result.values, among) > 0.7


def test_gradient_shapley(study):
    """A linear classifier on the pixels of three hundred digits."""
    among, train = subset(study, 300)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    result = gradient_shapley(
        model, F.cross_entropy, train, study.test, score=lambda o, y: -F.cross_entropy(o, y), permutations=8
    )
    assert found(study, "gradient_shapley, 300 points", -result.values, among) > 0.7
