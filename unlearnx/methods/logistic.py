"""L2-regularised logistic and softmax regression: gradients, curvature, and bounds of the error of Newton steps.

All functions work on K parameter matrices at once. With data X (n, p) and C columns of parameters,

    theta: (p, K, C). C is 1 for two classes (logistic regression), else the number of classes (softmax regression).
    z: scores ``X theta``, (n, K, C).
    y: class of each sample, int64 (n,).

After an exact Newton step D the gradient is not zero but ``X^T v``, because the Hessian A of a sample's loss changes
along the step. With ``u_i = x_i D``, the change of the scores of sample i, it is
``v_i = integral_0^1 (A(z_i + t u_i) - A(z_i)) u_i dt``. :meth:`Loss.remainder` bounds each ``||v_i||`` by the largest
third derivative of the loss:

- logistic: no third derivative exceeds ``1 / (6 sqrt 3)``, so ``|v_i| <= u_i^2 / (12 sqrt 3)``.
- softmax: the third derivative along (u, u, w) is the covariance of ``Y = (u - mean u)^2`` and w under the
  probabilities. Let R be the range of the scores' changes u. A w of norm 1 has a range of at most sqrt 2, so a standard
  deviation of at most ``1 / sqrt 2``. With m in [0, 1/2] the distance of mean u from the nearer end of the range in
  units of R, ``Y <= (1 - m)^2 R^2`` and ``E Y <= m (1 - m) R^2``; by Bhatia and Davis, the variance of Y is at most
  ``(max Y - E Y) E Y <= 0.0776 R^4``. The product is below ``0.2 R^2``, so ``||v_i|| <= 0.1 R_i^2``.

Both are at most ``||D|| ||x_i D|| / 4`` for rows of at most unit norm, the published constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.methods.design_matrix import MAX_DENSE_COLUMNS, Design

FLOAT32_TOLERANCE = 1e-3  # smallest relative tolerance at which linear systems may be solved in float32
MAX_CG_ITERATIONS = 1000
MAX_NEWTON_STEPS = 50
MAX_STEP_HALVINGS = 30


class Loss(Protocol):
    """The loss of a sample as a function of its scores."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses (n, K)."""

    def probabilities(self, z: Tensor) -> Tensor:
        """Probabilities (n, K, C): of the second class for two classes, else of every class."""

    def residual(self, p: Tensor, y: Tensor) -> Tensor:
        """Gradients with respect to the scores (n, K, C), at probabilities p."""

    def hessian_weights(self, p: Tensor) -> Tensor:
        """The numbers (n, K, C) that define the Hessians; set to 0 for samples whose Hessian is to be 0."""

    def hessian_product(self, w: Tensor, u: Tensor) -> Tensor:
        """Products of the Hessians with respect to the scores, given by `w`, with u (n, K, C)."""

    def remainder(self, u: Tensor) -> Tensor:
        """Bounds (n, K) of ``||v_i||`` for the change u of the scores; see the module's docstring."""


class Logistic:
    """Two classes, one score: the log-odds of the second."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return (F.softplus(z) - y.to(z)[:, None, None] * z)[..., 0]

    def probabilities(self, z: Tensor) -> Tensor:  # noqa: D102
        return z.sigmoid()

    def residual(self, p: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return p - y.to(p)[:, None, None]

    def hessian_weights(self, p: Tensor) -> Tensor:  # noqa: D102
        return p * (1 - p)

    def hessian_product(self, w: Tensor, u: Tensor) -> Tensor:  # noqa: D102
        return w * u

    def remainder(self, u: Tensor) -> Tensor:  # noqa: D102
        return u[..., 0].square() / (12 * 3**0.5)


class Softmax:
    """C classes with one score each."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        score_of_label = z.gather(2, y[:, None, None].expand(-1, z.shape[1], 1))[..., 0]
        return z.logsumexp(2) - score_of_label

    def probabilities(self, z: Tensor) -> Tensor:  # noqa: D102
        return z.softmax(2)

    def residual(self, p: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return p - F.one_hot(y, p.shape[2]).to(p)[:, None]

    def hessian_weights(self, p: Tensor) -> Tensor:  # noqa: D102
        return p

    def hessian_product(self, w: Tensor, u: Tensor) -> Tensor:  # noqa: D102
        weighted = w * u
        return weighted - w * weighted.sum(2, keepdim=True)

    def remainder(self, u: Tensor) -> Tensor:  # noqa: D102
        return 0.1 * (u.amax(2) - u.amin(2)).square()


def loss_of(classes: int) -> Loss:
    """The loss for this number of classes."""
    return Logistic() if classes == 2 else Softmax()


def conjugate_gradients(
    product: Callable[[Tensor, Tensor], Tensor], v: Tensor, tolerance: float, iterations: int
) -> tuple[Tensor, int]:
    """Solve K linear systems with different matrices side by side.

    Solved systems take part until half of the systems are solved, because leaving them out copies the others.
    (:class:`unlearnx.curvature.ConjugateGradient` is for right-hand sides with one matrix.)

    Args:
        product: ``product(d, systems)`` multiplies d (p, k, C) by the matrices of the given systems, int64 (k,).
        v: right-hand sides, (p, K, C).
        tolerance: norm of the residual to stop at, relative to that of v.
        iterations: most iterations.

    Returns:
        The solutions (p, K, C) and the number of iterations.
    """
    x = torch.zeros_like(v)
    systems = (_dot(v, v) > 0).nonzero().flatten()
    residual = v[:, systems]
    direction = residual.clone()
    residual_size = _dot(residual, residual)
    target_size, tiny = tolerance**2 * residual_size, torch.finfo(v.dtype).tiny
    for iteration in range(iterations):
        if not len(systems):
            return x, iteration
        image = product(direction, systems)
        step = (residual_size / _dot(direction, image).clamp(min=tiny))[:, None]
        x[:, systems] += step * direction
        residual = residual - step * image
        new_size = _dot(residual, residual)
        unsolved = new_size > target_size
        direction = residual + (new_size / residual_size.clamp(min=tiny))[:, None] * direction
        residual_size = new_size
        if 2 * int(unsolved.sum()) <= len(systems):
            systems, target_size, residual_size = systems[unsolved], target_size[unsolved], residual_size[unsolved]
            residual, direction = residual[:, unsolved], direction[:, unsolved]
    return x, iterations


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (K,) of K pairs of matrices."""
    return (a * b).sum((0, 2))


@dataclass(frozen=True)
class Step:
    """A Newton step of K problems, with bounds of the gradient after it.

    Attributes:
        d: the step, (p, K, C).
        u: the change of the scores, ``X d``, (n, K, C).
        linear: norm of the residual of the linear system, (K,), computed from d.
        remainder: bound of the norm of the gradient that is due to the change of the Hessian, (K,).
        published: the published bound of the same, ``||d|| ||X d|| ||X||_2 / 4``, (K,), for rows of at most unit norm.
        iterations: iterations of conjugate gradients; 0 if the system was solved by a Cholesky factor.
    """

    d: Tensor
    u: Tensor
    linear: Tensor
    remainder: Tensor
    published: Tensor
    iterations: int


@dataclass(frozen=True)
class Objective:
    """Sum of losses ``+ lam / 2 ||theta||^2 + <noise, theta>``, for K choices of features that are left out.

    Attributes:
        design: the data X, (n, p).
        y: classes, int64 (n,).
        loss: the loss of a sample.
        lam: > 0, not multiplied by the number of samples.
        noise: (p, C).
        active: 1 for samples in the sum, 0 for removed ones, (n,).
        kept: 1 for features in use, 0 for those left out, whose parameters stay 0, (p, K).
        spectral_norm: an upper bound of the spectral norm of X.
    """

    design: Design
    y: Tensor
    loss: Loss
    lam: float
    noise: Tensor
    active: Tensor
    kept: Tensor
    spectral_norm: float

    def times(self, theta: Tensor) -> Tensor:
        """Scores (n, K, C)."""
        return _times(self.design, theta)

    def value(self, theta: Tensor, z: Tensor) -> Tensor:
        """The objectives (K,)."""
        losses = self.active @ self.loss.value(z, self.y)
        return losses + self.lam / 2 * _dot(theta, theta) + _dot(self.noise[:, None] * self._mask, theta)

    def gradient(self, theta: Tensor, z: Tensor) -> Tensor:
        """Gradients (p, K, C) at parameters with scores z."""
        return self._gradient(theta, self._residual(self.loss.probabilities(z)), self.design)

    def _residual(self, p: Tensor) -> Tensor:
        return self.loss.residual(p, self.y) * self.active.to(p)[:, None, None]

    def _gradient(self, theta: Tensor, residual: Tensor, design: Design) -> Tensor:
        data = _transposed_times(design, residual).to(theta.dtype)
        return self._mask * (data + self.lam * theta + self.noise[:, None])

    @property
    def _mask(self) -> Tensor:
        return self.kept[:, :, None]

    def step(self, z: Tensor, v: Tensor, tolerance: float) -> Step:
        """Solve ``H d = v`` with the Hessians H at scores z, for v (p, K, C)."""
        w = self._weights(self.loss.probabilities(z))
        d, iterations = self._solve(w, v, tolerance)
        u = self.times(d)
        remaining = v - self._mask * (_transposed_times(self.design, self.loss.hessian_product(w, u)) + self.lam * d)
        return self._bounded_step(d, u, remaining, iterations)

    def newton(self, theta: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Step, list[int]]:
        """Newton steps from parameters (p, K, C).

        Several problems are solved in float32 if the tolerance allows it; the parameters stay in float64.

        Returns:
            The parameters after the steps, the last step, and the iterations of every step.
        """
        design = self._search_design(theta, tolerance)
        z, iterations = _times(design, theta.to(design.dtype)), []
        for _ in range(steps):
            p = self.loss.probabilities(z)
            residual, w = self._residual(p), self._weights(p)
            d, cg_iterations = self._solve(w, -self._gradient(theta, residual, design), tolerance)
            u = _times(design, d.to(design.dtype))
            theta, z = theta + d, z + u
            iterations.append(cg_iterations)
        remaining = self._gradient(theta, residual + self.loss.hessian_product(w, u), design)
        return theta, self._bounded_step(d, u, remaining, cg_iterations), iterations

    def _weights(self, p: Tensor) -> Tensor:
        return self.loss.hessian_weights(p) * self.active.to(p)[:, None, None]

    def _search_design(self, v: Tensor, tolerance: float) -> Design:
        """The data, in float32 for several systems that conjugate gradients solve to a tolerance which allows it."""
        features, systems, columns = v.shape
        single = systems > 1 and features * columns > MAX_DENSE_COLUMNS and tolerance >= FLOAT32_TOLERANCE
        return self.design.single if single else self.design

    def _solve(self, w: Tensor, v: Tensor, tolerance: float) -> tuple[Tensor, int]:
        if v.shape[0] * v.shape[2] <= MAX_DENSE_COLUMNS:
            return self._direct(w, v), 0
        return self._iterative(w, v, tolerance)

    def _bounded_step(self, d: Tensor, u: Tensor, remaining: Tensor, iterations: int) -> Step:
        active_change = u * self.active.to(u)[:, None, None]
        return Step(
            d,
            u,
            linear=_norm(remaining),
            remainder=self.spectral_norm * self.loss.remainder(active_change).norm(dim=0),
            published=self.spectral_norm * _norm(d) * _norm(active_change) / 4,
            iterations=iterations,
        )

    def _direct(self, w: Tensor, v: Tensor) -> Tensor:
        """Solve by Cholesky factors of the Hessians, which are computed as products with the unit vectors."""
        features, systems, columns = v.shape
        units = torch.eye(features * columns, dtype=v.dtype).view(features, columns, -1).transpose(1, 2)
        d = torch.empty_like(v)
        for k in range(systems):
            mask = self._mask[:, k : k + 1]
            parts = [
                mask
                * _transposed_times(self.design, self.loss.hessian_product(w[:, k : k + 1], self.times(mask * part)))
                for part in units.split(32, dim=1)
            ]
            hessian = torch.cat(parts, 1).transpose(0, 1).reshape(features * columns, -1)
            hessian.diagonal().add_(self.lam)
            factor = torch.linalg.cholesky((hessian + hessian.T) / 2)
            d[:, k] = torch.cholesky_solve(v[:, k].reshape(-1, 1), factor).view(features, columns)
        return d * self._mask

    def _iterative(self, w: Tensor, v: Tensor, tolerance: float) -> tuple[Tensor, int]:
        """Solve by conjugate gradients."""
        design = self._search_design(v, tolerance)
        w, mask = w.to(design.dtype), self._mask.to(design.dtype)

        def product(d: Tensor, systems: Tensor) -> Tensor:
            nonlocal w, mask
            if len(systems) < w.shape[1]:  # solved systems were left out
                w, mask = w[:, unsolved[systems]], mask[:, unsolved[systems]]
                unsolved[systems] = torch.arange(len(systems))
            image = _transposed_times(design, self.loss.hessian_product(w, _times(design, d)))
            return mask * image + self.lam * d

        unsolved = torch.arange(v.shape[1])  # the index in w of each system
        d, iterations = conjugate_gradients(product, v.to(design.dtype), tolerance, MAX_CG_ITERATIONS)
        return d.to(v.dtype), iterations

    def minimise(self, tolerance: float) -> tuple[Tensor, float]:
        """The minimiser (p, 1, C) of a single objective by Newton's method from zero, and the norm of its gradient.

        Steps are halved until the objective decreases. The norm exceeds `tolerance` only if rounding errors prevent
        less.
        """
        theta = torch.zeros(self.kept.shape[0], 1, self.noise.shape[1], dtype=torch.float64)
        z = self.times(theta)
        first, value = None, self.value(theta, z)
        for _ in range(MAX_NEWTON_STEPS):
            gradient = self.gradient(theta, z)
            norm = float(_norm(gradient))
            first = norm if first is None else first
            if norm <= tolerance:
                break
            step = self.step(z, -gradient, min(0.1, (norm / first) ** 0.5))
            directional_derivative = _dot(gradient, step.d)
            for halvings in range(MAX_STEP_HALVINGS):
                length = 0.5**halvings
                trial = theta + length * step.d, z + length * step.u
                new_value = self.value(*trial)
                # Armijo's condition; the last term allows for rounding.
                if new_value <= value + 1e-4 * length * directional_derivative + 1e-13 * value.abs():
                    break
            (theta, z), value = trial, new_value
        return theta, float(_norm(self.gradient(theta, z)))


def _times(design: Design, theta: Tensor) -> Tensor:
    return design.times(theta.flatten(1)).reshape(-1, *theta.shape[1:])


def _transposed_times(design: Design, u: Tensor) -> Tensor:
    return design.transposed_times(u.flatten(1)).reshape(-1, *u.shape[1:])


def _norm(a: Tensor) -> Tensor:
    """Norms (K,) of K matrices."""
    return _dot(a, a).sqrt()
