from importlib import import_module
from itertools import combinations
from math import comb

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from unlearnx.attribution import knn_shapley


def worth(x, y, x_test, y_test, k, members):
    """Mean share of the k nearest members with the right class, of k."""
    if not members:
        return 0.0
    members = list(members)
    distances = (x_test[:, None] - x[members]).square().sum(2)
    order = distances.argsort(dim=1, stable=True)[:, :k]
    return ((y[members][order] == y_test[:, None]).double().sum(1) / k).mean().item()


def by_subsets(x, y, x_test, y_test, k):
    """The definition: mean over all sizes, then over all subsets, of what a point adds."""
    n = len(x)
    values = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for members in combinations(others, size):
                gain = worth(x, y, x_test, y_test, k, sorted((*members, i))) - worth(x, y, x_test, y_test, k, members)
                values[i] += gain / (n * comb(n - 1, size))
    return values


def points(n, t, classes=3, features=2):
    return (
        torch.randn(n, features),
        torch.randint(classes, (n,)),
        torch.randn(t, features),
        torch.randint(classes, (t,)),
    )


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_all_subsets(n, k):
    data = points(n, 3)
    torch.testing.assert_close(knn_shapley(*data, k=k), by_subsets(*data, k), rtol=1e-12, atol=1e-14)


def test_ties_come_in_the_order_of_indices():
    x = torch.tensor([[1.0], [-1.0], [1.0], [0.5], [1.0], [-1.0]])
    y, x_test, y_test = torch.tensor([0, 1, 1, 0, 0, 0]), torch.zeros(2, 1), torch.tensor([0, 1])
    torch.testing.assert_close(knn_shapley(x, y, x_test, y_test, k=2), by_subsets(x, y, x_test, y_test, 2))


def test_equal_points_tie_at_any_place():
    """Distances of equal points do not differ by rounding."""
    x = torch.randn(1, 33).expand(501, 33).clone()
    y = torch.randint(2, (501,))
    got = knn_shapley(x, y, torch.randn(7, 33), torch.zeros(7, dtype=torch.long), k=3)
    line = torch.arange(501.0)[:, None]
    torch.testing.assert_close(got, knn_shapley(line, y, -torch.ones(7, 1), torch.zeros(7, dtype=torch.long), k=3))


@pytest.mark.parametrize("k", [1, 5])
def test_values_add_up_to_the_worth_of_all(k):
    x, y, x_test, y_test = points(300, 50, features=4)
    share = KNeighborsClassifier(k).fit(x, y).predict_proba(x_test)[torch.arange(50), y_test]
    assert knn_shapley(x, y, x_test, y_test, k=k).sum().item() == pytest.approx(share.mean())


def test_against_the_recursion():
    x, y, x_test, y_test = points(200, 30)
    expected = torch.zeros(200, dtype=torch.float64)
    for point, label in zip(x_test, y_test, strict=True):
        order = (x - point).norm(dim=1).argsort(stable=True)
        match = (y[order] == label).double()
        value = match[-1] / 200
        expected[order[-1]] += value
        for i in range(199, 0, -1):
            value = value + (match[i - 1] - match[i]) / 5 * min(5, i) / i
            expected[order[i - 1]] += value
    torch.testing.assert_close(knn_shapley(x, y, x_test, y_test), expected / 30)


def test_chunks_do_not_matter(monkeypatch):
    data = points(40, 23)
    whole = knn_shapley(*data)
    module = import_module("unlearnx.attribution.knn_shapley")  # its name in the package is the function's
    monkeypatch.setattr(module, "DISTANCES_AT_ONCE", 100)
    torch.testing.assert_close(knn_shapley(*data), whole)


def test_images_and_float64():
    x, y, x_test, y_test = points(20, 6, features=8)
    expected = knn_shapley(x, y, x_test, y_test)
    got = knn_shapley(x.double().view(20, 2, 2, 2), y.int(), x_test.view(6, 2, 2, 2), y_test)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected)


def test_against_pydvl():
    valuation = pytest.importorskip("pydvl.valuation")
    x, y, x_test, y_test = (t.numpy() for t in points(60, 20))
    train, test = valuation.Dataset(x, y), valuation.Dataset(x_test, y_test)
    theirs = valuation.KNNShapleyValuation(KNeighborsClassifier(5), test, progress=False).fit(train).values()
    got = knn_shapley(*(torch.from_numpy(t) for t in (x, y, x_test, y_test)))
    torch.testing.assert_close(got, torch.from_numpy(theirs.values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, a, b: dict(x=x[:0], y=y[:0], x_test=a, y_test=b), "x: is torch.float32 of shape \\[0, 2\\]"),
        (lambda x, y, a, b: dict(x=x, y=y[:3], x_test=a, y_test=b), "y: is torch.int64 of shape \\[3\\], expected"),
        (lambda x, y, a, b: dict(x=x, y=y, x_test=a, y_test=b.float()), "y_test: is torch.float32"),
        (lambda x, y, a, b: dict(x=x, y=y, x_test=a[:, :1], y_test=b), "x_test: has 1 features, expected 2 as x"),
        (lambda x, y, a, b: dict(x=x / 0, y=y, x_test=a, y_test=b), "x: has values that are NaN"),
        (lambda x, y, a, b: dict(x=x, y=y, x_test=a, y_test=b, k=0), "k is 0, expected at least 1"),
    ],
)
def test_clear_errors(change, message):
    with pytest.raises(ValueError, match=message):
        knn_shapley(**change(*points(6, 4)))
