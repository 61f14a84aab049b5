"""Linear classifiers on features, with their predictions for samples that they were not fitted on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTY = 0.03  # of the squared weights, for standardised features and a mean over samples
TEMPERATURES = torch.logspace(0, 2, 13, dtype=torch.float64)


class RidgeClassifier:
    """Least squares on the one-hot labels of standardised features, with an L2 penalty.

    Solved by one Cholesky factorisation, which also gives the leave-one-out predictions exactly. The scores are
    scaled so that the softmax of those predictions has the least cross-entropy.

    Args:
        x: features (N, D).
        y: class indices (N,), int64.
        classes: number of classes.

    Attributes:
        left_out: scores (N, classes) of each sample by a classifier fitted on all the others, float64.
        left_out_leverage: :meth:`leverage` (N,) of each sample for such a classifier.

    Source: Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", section 7.10 (leave-one-out of a
    linear smoother).

    Example:
        >>> x = torch.randn(90, 5)
        >>> y = (x[:, 0] > 0).long()
        >>> classifier = RidgeClassifier(x, y, 2)
        >>> bool((classifier.left_out.argmax(1) == y).double().mean() > 0.8)
        True
    """

    def __init__(self, x: Tensor, y: Tensor, classes: int):
        x = x.double()
        self._mean = x.mean(0)
        spread = x.std(0, correction=0)
        self._scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0)
        z = self._standardised(x)
        labels = F.one_hot(y.long(), classes).double()
        self._prior = labels.mean(0)
        n = len(z)
        identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        self._factor = torch.linalg.cholesky(z.T @ z + PENALTY * n * identity)
        self._weight = torch.cholesky_solve(z.T @ (labels - self._prior), self._factor)
        leverage = self.leverage(x)
        residual = labels - self._prior - z @ self._weight
        self.left_out = labels - residual / (1 - (leverage + 1 / n).clamp(max=0.999))[:, None]
        self.left_out_leverage = leverage / (1 - leverage.clamp(max=0.999))
        losses = [F.cross_entropy(t * self.left_out, y.long()) for t in TEMPERATURES.tolist()]
        self._temperature = TEMPERATURES[int(torch.stack(losses).argmin())].item()
        self.left_out = self._temperature * self.left_out

    def __call__(self, x: Tensor) -> Tensor:
        """Scores (M, classes) of features (M, D), float64."""
        return self._temperature * (self._standardised(x.double()) @ self._weight + self._prior)

    def leverage(self, x: Tensor) -> Tensor:
        """How far features (M, D) lie from those of the fit, by the metric in which it weighs them, (M,)."""
        z = self._standardised(x.double())
        return torch.linalg.solve_triangular(self._factor, z.T, upper=False).square().sum(0)

    def _standardised(self, x: Tensor) -> Tensor:
        return (x - self._mean) * self._scale
