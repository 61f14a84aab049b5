import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx.attribution import gradient_shapley, permutations, tmc_shapley

POINTS = 10


def same(indices):
    return indices


class Table:
    """A game of ten points with a random worth for each set of them, the larger the more points."""

    def __init__(self, seed):
        noise = torch.randn(2**POINTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        sizes = torch.tensor([bin(s).count("1") for s in range(2**POINTS)])
        self.worth = sizes.double().sqrt() + 0.3 * noise
        self.worth[0] = 0.0

    def __call__(self, indices):
        return self.worth[sum(1 << i for i in indices.tolist())].item()

    def exact(self):
        sets = torch.arange(2**POINTS)
        values = []
        for i in range(POINTS):
            without = sets[sets & 1 << i == 0]
            chance = torch.tensor([1 / (POINTS * math.comb(POINTS - 1, bin(s).count("1"))) for s in without.tolist()])
            values.append(chance.double() @ (self.worth[without | 1 << i] - self.worth[without]))
        return torch.stack(values)


def equal(a, b):
    return a.permutations == b.permutations and all(
        torch.equal(getattr(a, k), getattr(b, k)) for k in ("values", "standard_errors")
    )


@pytest.mark.parametrize("seed", range(5))
def test_exact_values_are_within_the_interval(seed):
    game = Table(seed)
    result = tmc_shapley(same, game, POINTS, permutations=400, seed=seed)
    low, high = result.interval(0.999)
    assert ((low <= game.exact()) & (game.exact() <= high)).all()
    assert result.permutations == 400


def test_intervals_cover_as_often_as_they_say():
    inside = []
    for seed in range(20):
        game = Table(seed)
        exact, (low, high) = game.exact(), tmc_shapley(same, game, POINTS, permutations=100, seed=seed).interval(0.9)
        inside.append((low <= exact) & (exact <= high))
    assert 0.84 < torch.stack(inside).double().mean() < 0.96


def test_values_add_up():
    game = Table(0)
    result = tmc_shapley(same, game, POINTS, permutations=7, empty_score=0.25)
    assert result.values.sum().item() == pytest.approx(game(torch.arange(POINTS)) - 0.25)


def test_tolerance_ends_the_run():
    result = tmc_shapley(same, Table(0), POINTS, permutations=10_000, tolerance=0.03)
    assert permutations.MIN_PERMUTATIONS_FOR_TOLERANCE < result.permutations < 10_000
    assert result.standard_errors.max() <= 0.03


def test_truncation_saves_fits():
    fits = []

    def fit(indices):
        fits.append(1)
        return min(len(indices), 4)

    whole = tmc_shapley(fit, float, POINTS, permutations=50)
    full, fits[:] = len(fits), []
    truncated = tmc_shapley(fit, float, POINTS, permutations=50, truncation=0.5)
    assert len(fits) < 0.5 * full
    torch.testing.assert_close(truncated.values, whole.values)


def noisy(indices):
    """A fit that draws random numbers."""
    return indices.double().sum() * 0.01 + torch.rand(()).item()


def test_workers_do_not_matter():
    results = [tmc_shapley(noisy, float, POINTS, permutations=30, workers=w) for w in (1, 2, 3)]
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])
    by_tolerance = [tmc_shapley(same, Table(1), POINTS, tolerance=0.05, workers=w) for w in (1, 2)]
    assert equal(*by_tolerance)


def test_seeds_matter():
    a, b = (tmc_shapley(noisy, float, POINTS, permutations=5, seed=s) for s in (0, 1))
    assert not torch.equal(a.values, b.values)


@pytest.mark.parametrize("workers", [1, 2])
def test_resumes_where_it_was_cut_off(tmp_path, workers):
    path, game, calls = tmp_path / "shapley.npz", Table(0), []
    whole = tmc_shapley(same, game, POINTS, permutations=40)

    def failing(indices):
        calls.append(1)
        if len(calls) > 150:
            raise KeyboardInterrupt
        return game(indices)

    with pytest.raises(KeyboardInterrupt):
        tmc_shapley(same, failing, POINTS, permutations=40, checkpoint=path)
    counted = []

    def counting(indices):
        counted.append(1)
        return game(indices)

    again = tmc_shapley(same, counting, POINTS, permutations=40, checkpoint=path, workers=workers)
    assert equal(again, whole)
    if workers == 1:
        assert 200 < len(counted) < 300
    counted.clear()
    assert equal(tmc_shapley(same, counting, POINTS, permutations=40, checkpoint=path), whole)
    assert len(counted) == 1  # all points together: what tells the run
    assert [p.name for p in tmp_path.iterdir()] == ["shapley.npz"]


def test_other_runs_are_refused(tmp_path):
    path = tmp_path / "shapley.npz"
    tmc_shapley(same, Table(0), POINTS, permutations=3, checkpoint=path)
    for change in ({"seed": 1}, {"truncation": 0.1}, {"empty_score": 0.1}):
        with pytest.raises(ValueError, match="belongs to another run"):
            tmc_shapley(same, Table(0), POINTS, permutations=3, checkpoint=path, **change)


def test_failures_of_workers_are_raised():
    def fit(indices):
        if len(indices) == 3:
            raise OSError("no such luck")
        return 0.0

    for workers in (1, 2):
        with pytest.raises(OSError, match="no such luck"):
            tmc_shapley(fit, float, POINTS, permutations=5, workers=workers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_points": 0}, "n_points is 0"),
        ({"permutations": 0}, "permutations is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"tolerance": -1.0}, r"tolerance is -1\.0"),
        ({"truncation": float("nan")}, "truncation is nan"),
        ({"score": lambda s: float("nan")}, "score: is nan"),
        ({"empty_score": float("inf")}, "empty_score: is inf"),
    ],
)
def test_clear_errors(options, message):
    with pytest.raises(ValueError, match=message):
        tmc_shapley(**{"fit": same, "score": len, "n_points": 4, "permutations": 2, **options})


def test_levels_of_intervals():
    result = tmc_shapley(same, Table(0), POINTS, permutations=10)
    narrow, wide = result.interval(0.5), result.interval(0.99)
    assert (wide[0] < narrow[0]).all()
    assert (wide[1] > narrow[1]).all()
    with pytest.raises(ValueError, match=r"level is 1\.0"):
        result.interval(1.0)


def classifier():
    x = torch.randn(12, 4)
    return nn.Linear(4, 2), (x, (x[:, 0] > 0).long()), (torch.randn(40, 4), torch.randint(2, (40,)))


def negative_loss(output, y):
    return -F.cross_entropy(output, y)


def test_gradient_shapley_by_its_definition():
    model, train, test = classifier()
    result = gradient_shapley(model, F.cross_entropy, train, test, lr=0.1, score=negative_loss, permutations=4, seed=3)
    rows = []
    for p in range(4):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(permutations.stream_seed(3, p)))
        copied = nn.Linear(4, 2)
        copied.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
        row, before = torch.zeros(12, dtype=torch.float64), negative_loss(copied(test[0]), test[1])
        for i in order:
            optimizer.zero_grad()
            F.cross_entropy(copied(train[0][i : i + 1]), train[1][i : i + 1]).backward()
            optimizer.step()
            after = negative_loss(copied(test[0]), test[1])
            row[i], before = (after - before).item(), after
        rows.append(row)
    rows = torch.stack(rows)
    torch.testing.assert_close(result.values, rows.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result.standard_errors, rows.std(0) / 2, rtol=1e-4, atol=1e-7)


def test_gradient_shapley_is_reproducible():
    model, train, test = classifier()
    before, random = {k: t.clone() for k, t in model.state_dict().items()}, torch.get_rng_state()
    one, two = (gradient_shapley(model, F.cross_entropy, train, test, permutations=6, workers=w) for w in (1, 2))
    assert equal(one, two)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_gradient_shapley_refuses():
    model, train, test = classifier()
    with pytest.raises(ValueError, match="lr is 0"):
        gradient_shapley(model, F.cross_entropy, train, test, lr=0)
    with pytest.raises(ValueError, match="score: is nan"):
        gradient_shapley(model, F.cross_entropy, train, test, score=lambda o, y: math.nan)
    with pytest.raises(ValueError, match=r"call model\.eval"):
        gradient_shapley(nn.Sequential(nn.Dropout(), model), F.cross_entropy, train, test)
