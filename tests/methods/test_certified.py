import copy
import math

import pytest
import torch

from unlearnx.data import load_drebin
from unlearnx.methods import CertifiedRemoval


def data(n=400, p=8, classes=2, *, sparse=False, seed=0):
    """Rows of at most unit norm, and labels that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    if sparse:
        x = x * (torch.rand(n, p, generator=generator) < 0.05)
    truth = torch.randn(p, classes, generator=generator, dtype=torch.float64)
    y = (x @ truth + 0.5 * torch.randn(n, classes, generator=generator)).argmax(1)
    x = x / x.norm(dim=1).max()
    return (x.to_sparse_csr() if sparse else x), y


def exact(model):
    return model.gradient_residual() <= model.residual_bound + 1e-9


CASES = [
    pytest.param(2, 8, False, id="two classes, dense"),
    pytest.param(2, 300, True, id="two classes, sparse"),
    pytest.param(3, 8, False, id="three classes, dense"),
    pytest.param(3, 300, True, id="three classes, sparse"),
]


@pytest.mark.parametrize(("classes", "p", "sparse"), CASES)
def test_bound_holds_over_200_removals_of_rows(classes, p, sparse):
    model = CertifiedRemoval(epsilon=1.0, delta=1e-4, lam=2.0, sigma=3.0, seed=1)
    model.fit(*data(600, p, classes, sparse=sparse))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(2))
    for i in order[:200].tolist():
        model.remove([i])
        assert model.gradient_residual() <= model.residual_bound + 1e-9
        assert model.residual_bound <= model.budget
    steps = [entry for entry in model.ledger if entry.kind == "rows"]
    assert len(model.ledger) == 201
    assert all(0 < entry.remainder <= entry.published for entry in steps)
    assert len(steps) > 150


def test_ledger_adds_up_and_training_starts_anew():
    model = CertifiedRemoval(epsilon=0.2, delta=1e-4, lam=1.0, sigma=1.0, seed=0).fit(*data())
    assert model.budget == pytest.approx(0.2 / math.sqrt(2 * math.log(1.5e4)))
    bound, trained = model.residual_bound, 0
    for i in range(0, 400, 4):
        entry = model.remove([i, i + 1])
        assert entry is model.ledger[-1]
        assert entry.residual_bound == model.residual_bound <= model.budget
        if entry.kind == "training":
            trained += 1
            assert entry.reason.startswith("rows: the residual bound would be")
            assert entry.residual_bound <= 1e-6
            assert entry.count == 400 - i // 2 - 2
        else:
            assert (entry.count, entry.reason) == (2, "")
            assert entry.residual_bound == pytest.approx(bound + entry.linear + entry.remainder)
        bound = entry.residual_bound
        assert exact(model)
    assert trained > 0
    assert model.trainings == 1 + trained


def without_noise(**settings):
    return CertifiedRemoval(certified=False, **settings)


@pytest.mark.parametrize(("classes", "p", "sparse"), CASES)
def test_requests_come_close_to_retraining(classes, p, sparse):
    x, y = data(400, p, classes, sparse=sparse)
    dense = x.to_dense() if sparse else x
    model = without_noise().fit(x, y)
    start = model.theta.clone()

    rows = [3, 100, 250]
    stays = torch.tensor([i not in rows for i in range(400)])
    model.remove(rows)
    again = without_noise().fit(dense[stays], y[stays]).theta
    assert (model.theta - again).norm() <= 0.05 * (start - again).norm()

    corrected = y.clone()
    corrected[[7, 5]] = torch.tensor([(y[7] + 1) % classes, y[5]])
    model.correct_labels([7, 5], corrected[[7, 5]])
    again = without_noise().fit(dense[stays], corrected[stays]).theta
    assert (model.theta - again).norm() <= 0.1 * (start - again).norm()

    masked = dense.clone()
    masked[:, [1, 4]] = 0
    again = without_noise().fit(masked[stays], corrected[stays]).theta
    for steps, share in ((1, 0.1), (2, 1e-3)):
        other = copy.copy(model)
        entry = other.remove_features([4, 1], steps=steps)
        assert entry.kind == "features"
        assert not other.theta[[1, 4]].any()
        assert (other.theta - again).norm() <= share * (model.theta - again).norm()
        assert exact(other)
    assert torch.equal(model.predict(dense).unique(), model.classes)


def test_features_leave_with_their_noise():
    x, y = data()
    model = CertifiedRemoval(sigma=5.0, epsilon=10.0, seed=0).fit(x, y)
    model.remove_features([0, 7], steps=2)
    assert model.trainings == 1
    assert not model.theta[[0, 7]].any()
    assert exact(model)
    before = model.residual_bound
    model.remove([1])
    assert model.residual_bound > before
    assert exact(model)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-8])
def test_many_features_are_those_of_single_requests(tolerance):
    model = without_noise(tolerance=tolerance).fit(*data(500, 300, sparse=True))
    theta, ledger = model.theta.clone(), list(model.ledger)
    requests = [[0, 5], [17], torch.tensor([100, 2, 299])]
    for steps in (1, 2):
        found = model.many_features(requests, steps=steps)
        for request, removal in zip(requests, found, strict=True):
            alone = copy.copy(model)
            alone.remove_features(request, steps=steps)
            assert removal.columns == sorted(int(c) for c in request)
            assert len(removal.iterations) == steps
            distance = (alone.theta - removal.theta).norm()
            assert distance <= 2 * tolerance * (theta - removal.theta).norm() + 1e-12
            alone.theta = removal.theta
            rounding = 1e-9 if tolerance < 1e-3 else 1e-4
            assert alone.gradient_residual() <= removal.residual_bound + rounding
    assert torch.equal(model.theta, theta)
    assert model.ledger == ledger


def test_labels_may_be_any_integers_and_predictions_are_among_them():
    x, y = data(classes=3)
    names = torch.tensor([7, -2, 40])
    model = CertifiedRemoval(sigma=0.1, seed=0).fit(x.numpy(), names[y].numpy())
    predicted = model.predict(x)
    assert set(predicted.tolist()) == {-2, 7, 40}
    assert (predicted == names[y]).double().mean() > 0.6
    two = CertifiedRemoval(sigma=0.1, seed=0).fit(x, torch.where(y == 0, -1, 1))
    assert ((two.predict(x) == 1) == (x @ two.theta[:, 0] > 0)).all()


def test_global_random_state_is_left_alone_and_noise_is_seeded():
    x, y = data()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    models = [CertifiedRemoval(seed=seed).fit(x, y) for seed in (0, 0, 1, None, None)]
    assert torch.equal(torch.rand(1), expected)
    same = [torch.equal(models[0].theta, model.theta) for model in models]
    assert same == [True, True, False, False, False]
    assert not torch.equal(models[3].theta, models[4].theta)


def test_retraining_draws_new_noise():
    model = CertifiedRemoval(epsilon=1e-4, seed=0).fit(*data())
    noise = model._objective.noise
    assert model.remove([0]).kind == "training"
    assert not torch.equal(model._objective.noise, noise)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lam=0.0), "lam is 0.0, expected a finite number > 0"),
        (dict(lam=-1.0), "lam is -1.0"),
        (dict(epsilon=0), "epsilon is 0"),
        (dict(epsilon=math.inf), "epsilon is inf"),
        (dict(sigma=0.0), "sigma is 0.0"),
        (dict(delta=0.0), "delta is 0.0, expected a number between 0 and 1"),
        (dict(delta=1.0), "delta is 1.0"),
        (dict(tolerance=0), "tolerance is 0"),
    ],
)
def test_settings_that_certify_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CertifiedRemoval(**settings)


def test_long_rows_are_refused_where_they_would_be_certified():
    x, y = data()
    with pytest.raises(ValueError, match=r"x: .* rows have a norm above 1, up to 2;.*certified=False"):
        CertifiedRemoval().fit(2 * x, y)
    model = CertifiedRemoval(certified=False).fit(2 * x, y)
    assert model.budget == math.inf
    model.remove([0, 1])
    assert exact(model)
    assert model.trainings == 1


def test_budget_below_what_training_reaches_is_refused():
    with pytest.raises(ValueError, match=r"sigma is .* expected a larger sigma or epsilon"):
        CertifiedRemoval(sigma=1e-15).fit(*data())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, 0], y), "x: has shape"),
        (lambda x, y: (x, y[1:]), "y: has 399 labels, expected 400"),
        (lambda x, y: (x, y.double()), "y: is torch.float64"),
        (lambda x, y: (x, ["a"] * len(y)), "^y is "),
        (lambda x, y: (x, 0 * y), "y: has 1 class"),
        (lambda x, y: (x * float("nan"), y), "values are NaN"),
    ],
)
def test_data_that_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        CertifiedRemoval().fit(*change(*data()))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda m: m.remove([]), "indices: is empty"),
        (lambda m: m.remove([400]), "indices: 400 is out of range, expected 0 to 399"),
        (lambda m: m.remove([-1]), "indices: -1 is out of range"),
        (lambda m: m.remove([3, 3]), "indices: 3 is given twice"),
        (lambda m: m.remove([0]), "indices: 0 was removed already"),
        (lambda m: m.remove(range(1, 400)), "contains all 399 rows that are left"),
        (lambda m: m.remove(torch.zeros(400, dtype=torch.bool)), "indices: is a boolean mask"),
        (lambda m: m.remove_features([1]), "columns: 1 was removed already"),
        (lambda m: m.remove_features([0, 2, 3, 4, 5, 6, 7]), "contains all 7 features that are left"),
        (lambda m: m.remove_features([0], steps=0), "steps is 0"),
        (lambda m: m.many_features([]), "requests: is empty"),
        (lambda m: m.many_features([[0], [9]]), r"requests\[1\]: 9 is out of range, expected 0 to 7"),
        (lambda m: m.correct_labels([0], [1]), "indices: 0 was removed already"),
        (lambda m: m.correct_labels([1, 2], [1]), "labels: has 1 labels, expected 2"),
        (lambda m: m.correct_labels([1], [5]), r"labels: has 5, expected one of the classes \[0, 1\]"),
        (lambda m: m.predict(torch.zeros(2, 7)), "x: has 7 features, expected 8"),
    ],
)
def test_requests_that_do_not_fit(request_, message):
    model = without_noise().fit(*data())
    model.remove([0])
    model.remove_features([1])
    theta, ledger = model.theta, model.ledger
    with pytest.raises(ValueError, match=message):
        request_(model)
    assert model.theta is theta
    assert model.ledger is ledger


def test_nothing_works_before_training():
    model = CertifiedRemoval()
    for call in (lambda: model.remove([0]), lambda: model.predict(torch.zeros(1, 1)), lambda: model.residual_bound):
        with pytest.raises(RuntimeError, match=r"call fit\(x, y\) first"):
            call()


def test_malware(real_data):
    """The residuals of the claim, on two draws."""
    table = load_drebin(real_data)
    model = without_noise(tolerance=3e-2).fit(table.train_x, table.train_y)
    urls = torch.tensor(list(table.sensitive.values()))[:, 0]
    for count in (10, 50, 100):
        drawn = [urls[torch.randperm(len(urls))[:count]] for _ in range(2)]
        for steps, limit in ((1, 1.5), (2, 0.05)):
            for columns, removal in zip(drawn, model.many_features(drawn, steps=steps), strict=True):
                left = copy.copy(model)
                left.remove_features(columns, steps=steps)
                assert left.gradient_residual() <= limit
                left.theta = removal.theta
                assert left.gradient_residual() <= limit
