"""The skew-normal distribution: fitted by maximum likelihood, with a log-CDF that is accurate far in the tail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr

NODES, WEIGHTS = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(64))  # of Gauss-Legendre, on [-1, 1]
MIN_CLOSED_FORM_CDF = 1e-8  # smaller CDFs are integrated: the closed form is a difference, with an error of 1e-16
TAIL_DECAY_LENGTHS = 40.0  # of the tail that are integrated: a share of e^-40 is left out


@dataclass(frozen=True)
class SkewNormal:
    """Density ``2 / scale * phi(z) * Phi(shape * z)`` with ``z = (x - location) / scale``.

    Source: Azzalini, "A class of distributions which includes the normal ones", 1985.

    Example:
        >>> fit = SkewNormal.fit(5 + 2 * torch.randn(10_000))
        >>> 0.45 < fit.cdf(torch.tensor(5.0)) < 0.55, fit.log_cdf(torch.tensor(-100.0)) < -100
        (tensor(True), tensor(True))
    """

    shape: float
    location: float
    scale: float

    @classmethod
    def fit(cls, values: Tensor) -> SkewNormal:
        """The distribution under which `values` (N,) are most likely, by L-BFGS, started where the moments are equal.

        Raises:
            ValueError: the values are all the same, or not finite.
        """
        with torch.inference_mode(False):  # or the copy would take no part in gradients
            return cls._fitted(values.clone().double())

    @classmethod
    def _fitted(cls, values: Tensor) -> SkewNormal:
        mean, deviation = values.mean(), values.std()
        if not (deviation.isfinite() and deviation > 0):
            raise ValueError(f"values: have a standard deviation of {deviation:.3g}, expected a number > 0")
        z = (values - mean) / deviation
        start = cls._of_skewness(float(z.pow(3).mean()))
        params = torch.tensor([start.shape, start.location, math.log(start.scale)], dtype=torch.float64)
        params.requires_grad_()
        optimizer = torch.optim.LBFGS([params], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            shape, location, log_scale = params
            value = log_scale - _log_density((z - location) / log_scale.exp(), shape).mean()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        shape, location, log_scale = params.tolist()
        return cls(shape, float(mean + deviation * location), float(deviation) * math.exp(log_scale))

    @classmethod
    def _of_skewness(cls, skewness: float) -> SkewNormal:
        """The distribution of mean 0, variance 1 and this skewness, or the nearest one that a skew-normal can have."""
        size = min(abs(skewness), 0.9) ** (2 / 3)
        delta = math.copysign(math.sqrt(math.pi / 2 * size / (size + ((4 - math.pi) / 2) ** (2 / 3))), skewness)
        scale = 1 / math.sqrt(1 - 2 * delta**2 / math.pi)
        return cls(delta / math.sqrt(1 - delta**2), -scale * delta * math.sqrt(2 / math.pi), scale)

    def log_density(self, x: Tensor) -> Tensor:
        """Natural logarithm of the density at x, elementwise."""
        return _log_density(self._standardised(x), self.shape) - math.log(self.scale)

    def cdf(self, x: Tensor) -> Tensor:
        """Probability of a value below x, elementwise, with an absolute error of about 1e-15."""
        z = self._standardised(x)
        return (ndtr(z) - 2 * _owens_t(z, self.shape)).clamp(0, 1)

    def log_cdf(self, x: Tensor) -> Tensor:
        """Natural logarithm of :meth:`cdf`, with an absolute error of about 1e-8 however small the CDF is."""
        cdf = self.cdf(x)
        return torch.where(cdf > MIN_CLOSED_FORM_CDF, cdf.log(), self._log_tail(self._standardised(x)))

    def distance(self, values: Tensor) -> float:
        """Kolmogorov-Smirnov distance: the largest difference between the CDF of `values` (N,) and this one."""
        cdf = self.cdf(values.sort().values)
        steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
        return float(torch.maximum(steps[1:] - cdf, cdf - steps[:-1]).max())

    def _standardised(self, x: Tensor) -> Tensor:
        return (x.double() - self.location) / self.scale

    def _log_tail(self, z: Tensor) -> Tensor:
        """Logarithm of the integral of the density up to z, left of the mode.

        The density is log-concave: to the left of z it falls at least as fast as it does at z, at the rate `slope`.
        """
        a = self.shape
        slope = (a * (-0.5 * (a * z) ** 2 - log_ndtr(a * z)).exp() / math.sqrt(2 * math.pi) - z).clamp(min=1)
        lengths = TAIL_DECAY_LENGTHS / 2 * (NODES + 1)
        values = _log_density(z[..., None] - lengths / slope[..., None], a) + (TAIL_DECAY_LENGTHS / 2 * WEIGHTS).log()
        return values.logsumexp(-1) - slope.log()


def _log_density(z: Tensor, shape: Tensor | float) -> Tensor:
    return math.log(2 / math.sqrt(2 * math.pi)) - z.square() / 2 + log_ndtr(shape * z)


def _owens_t(h: Tensor, a: float) -> Tensor:
    """Owen's T function, ``1 / (2 pi) * integral from 0 to a of exp(-h^2 (1 + x^2) / 2) / (1 + x^2) dx``."""
    if a < 0:
        return -_owens_t(h, -a)
    if a > 1:  # the integrand may be narrow: swap the roles of h and a * h
        h = h.abs()
        p, q = ndtr(h), ndtr(a * h)
        return (p + q) / 2 - p * q - _owens_t(a * h, 1 / a)
    total = torch.zeros_like(h)
    for x, w in zip((a / 2 * (NODES + 1)).tolist(), (a / 2 * WEIGHTS).tolist(), strict=True):
        total += w / (1 + x * x) * torch.exp(-0.5 * (1 + x * x) * h.square())
    return total / (2 * math.pi)
