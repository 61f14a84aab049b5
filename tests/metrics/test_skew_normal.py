import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.special import log_ndtr

from unlearnx.metrics.skew_normal import SkewNormal

SHAPES = [-30.0, -4.0, -1.0, -0.3, 0.0, 0.5, 1.0, 3.0, 40.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_against_scipy_where_it_is_precise(shape):
    ours, theirs = SkewNormal(shape, 3.0, 2.0), stats.skewnorm(shape, 3.0, 2.0)
    x = torch.linspace(-9, 15, 200, dtype=torch.float64)
    np.testing.assert_allclose(ours.cdf(x), theirs.cdf(x), atol=1e-13)
    central = theirs.cdf(x) > 1e-4
    np.testing.assert_allclose(ours.log_cdf(x)[central], theirs.logcdf(x)[central], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.log_density(x)[central], theirs.logpdf(x)[central], rtol=1e-9)


@pytest.mark.parametrize(("shape", "factor"), [(0.0, 1), (1.0, 2)])
def test_tails_with_a_closed_form(shape, factor):
    """Shape 0 is the normal distribution, shape 1 that of the larger one of two normal numbers."""
    z = torch.linspace(-60, 8, 300, dtype=torch.float64)
    torch.testing.assert_close(SkewNormal(shape, 0, 1).log_cdf(z), factor * log_ndtr(z), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_tails_against_quadrature(shape):
    """Sums of the density on a fine grid, in logarithms; SciPy's logarithm is noise there, or -inf."""
    distribution = SkewNormal(shape, 0.0, 1.0)
    for log_probability in (-16.0, -21.0, -28.0, -92.0, -920.0):
        low, high = -60.0, 0.0
        for _ in range(60):
            middle = (low + high) / 2
            below = distribution.log_cdf(torch.tensor(middle, dtype=torch.float64)) < log_probability
            low, high = (middle, high) if below else (low, middle)
        width = 1e-5
        grid = high - width * (torch.arange(500_000, dtype=torch.float64) + 0.5)
        expected = distribution.log_density(grid).logsumexp(0).item() + math.log(width)
        assert expected == pytest.approx(log_probability, abs=2e-5)  # the sum is as rough as that


def test_fit_is_scipys():
    values = stats.skewnorm.rvs(3, 20, 4, size=2000, random_state=0)
    fit = SkewNormal.fit(torch.from_numpy(values))
    theirs = stats.skewnorm.fit(values, 3, loc=20, scale=4)
    assert (fit.shape, fit.location, fit.scale) == pytest.approx(theirs, rel=1e-3)
    assert fit.distance(torch.from_numpy(values)) == pytest.approx(
        stats.kstest(values, stats.skewnorm(fit.shape, fit.location, fit.scale).cdf).statistic, abs=1e-9
    )


@pytest.mark.parametrize("shape", [-5.0, 0.0, 2.0, 100.0])
def test_fit_of_many(shape):
    values = torch.from_numpy(stats.skewnorm.rvs(shape, 20, 4, size=20_000, random_state=1))
    fit, truth = SkewNormal.fit(values), SkewNormal(shape, 20, 4)
    assert fit.log_density(values).mean() >= truth.log_density(values).mean()
    assert fit.distance(values) < 0.015


def test_values_without_a_spread():
    for values in (torch.ones(10), torch.tensor([1.0, math.inf, 2.0])):
        with pytest.raises(ValueError, match="values: have a standard deviation of"):
            SkewNormal.fit(values)
