"""L2-regularised logistic and softmax regression: gradients, curvature, and how far a Newton step can be off.

Everything is written for K parameter matrices at once. With data X (n, p) and C columns of parameters,

    theta: (p, K, C). C is 1 for two classes (logistic regression), else the number of classes (softmax regression).
    z: scores ``X theta``, (n, K, C).
    y: class of each row, int64 (n,).

A Newton step D leaves ``X^T v`` of the gradient, where row i has
``v_i = integral_0^1 (A(z_i + t u_i) - A(z_i)) u_i dt`` with its change of scores ``u_i = x_i D`` and the Hessian A of
its loss. :meth:`Loss.remainder` bounds every
``||v_i||`` by the largest third derivative of the loss:

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

SINGLE = 1e-3  # tolerance of linear systems down to which float32 will do for the search
CG_ITERATIONS = 1000
NEWTON_STEPS = 50
HALVINGS = 30  # of a step of Newton's method


class Loss(Protocol):
    """What a row costs, as a function of its scores."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """Losses, (n, K)."""

    def probabilities(self, z: Tensor) -> Tensor:
        """Of the second class, or of each of several, (n, K, C)."""

    def residual(self, p: Tensor, y: Tensor) -> Tensor:
        """Gradients with respect to the scores, (n, K, C), at the probabilities p."""

    def weights(self, p: Tensor) -> Tensor:
        """What of the probabilities the Hessians are made of; 0 where the Hessian is to be 0."""

    def curve(self, w: Tensor, u: Tensor) -> Tensor:
        """Hessians with respect to the scores, of those weights, times u (n, K, C)."""

    def remainder(self, u: Tensor) -> Tensor:
        """Bounds of what a change u of the scores leaves of each row's gradient, (n, K); see the module."""


class Logistic:
    """Two classes, one score: the log-odds of the second."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return (F.softplus(z) - y.to(z)[:, None, None] * z)[..., 0]

    def probabilities(self, z: Tensor) -> Tensor:  # noqa: D102
        return z.sigmoid()

    def residual(self, p: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return p - y.to(p)[:, None, None]

    def weights(self, p: Tensor) -> Tensor:  # noqa: D102
        return p * (1 - p)

    def curve(self, w: Tensor, u: Tensor) -> Tensor:  # noqa: D102
        return w * u

    def remainder(self, u: Tensor) -> Tensor:  # noqa: D102
        return u[..., 0].square() / (12 * 3**0.5)


class Softmax:
    """C classes, as many scores."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        own = z.gather(2, y[:, None, None].expand(-1, z.shape[1], 1))[..., 0]
        return z.logsumexp(2) - own

    def probabilities(self, z: Tensor) -> Tensor:  # noqa: D102
        return z.softmax(2)

    def residual(self, p: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return p - F.one_hot(y, p.shape[2]).to(p)[:, None]

    def weights(self, p: Tensor) -> Tensor:  # noqa: D102
        return p

    def curve(self, w: Tensor, u: Tensor) -> Tensor:  # noqa: D102
        weighted = w * u
        return weighted - w * weighted.sum(2, keepdim=True)

    def remainder(self, u: Tensor) -> Tensor:  # noqa: D102
        return 0.1 * (u.amax(2) - u.amin(2)).square()


def loss_of(classes: int) -> Loss:
    """The loss for that many classes."""
    return Logistic() if classes == 2 else Softmax()


def conjugate_gradients(
    product: Callable[[Tensor, Tensor], Tensor], v: Tensor, tolerance: float, iterations: int
) -> tuple[Tensor, int]:
    """Solve K systems side by side, each with a matrix and step lengths of its own.

    Those that are done go on with the others until half of them are: leaving them out takes copies.
    Unlike :class:`unlearnx.curvature.ConjugateGradient`, whose right-hand sides share one matrix and their directions.

    Args:
        product: ``product(d, systems)`` multiplies d (p, k, C) by the matrices of those systems, int64 (k,).
        v: right-hand sides, (p, K, C).
        tolerance: residual to stop at, relative to that of zero.
        iterations: most iterations.

    Returns:
        The solutions (p, K, C) and the number of iterations.
    """
    x = torch.zeros_like(v)
    systems = (_dot(v, v) > 0).nonzero().flatten()
    residual = v[:, systems]
    direction = residual.clone()
    size = _dot(residual, residual)
    goal, tiny = tolerance**2 * size, torch.finfo(v.dtype).tiny
    for iteration in range(iterations):
        if not len(systems):
            return x, iteration
        image = product(direction, systems)
        step = (size / _dot(direction, image).clamp(min=tiny))[:, None]
        x[:, systems] += step * direction
        residual = residual - step * image
        following = _dot(residual, residual)
        open_ = following > goal
        direction = residual + (following / size.clamp(min=tiny))[:, None] * direction
        size = following
        if 2 * int(open_.sum()) <= len(systems):
            systems, goal, size = systems[open_], goal[open_], size[open_]
            residual, direction = residual[:, open_], direction[:, open_]
    return x, iterations


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (K,) of K pairs of matrices."""
    return (a * b).sum((0, 2))


@dataclass(frozen=True)
class Step:
    """A Newton step of K problems, and what it leaves of the gradient.

    Attributes:
        d: the step, (p, K, C).
        u: how it changes the scores, ``X d``, (n, K, C).
        linear: norm of what the solution leaves of the linear system, (K,), by a product of its own.
        remainder: bound of what the changing curvature leaves, (K,).
        published: the bound ``||d|| ||X d|| ||X||_2 / 4`` of the same, (K,), for rows of at most unit norm.
        iterations: of conjugate gradients; 0 where a Cholesky factor solved the system.
    """

    d: Tensor
    u: Tensor
    linear: Tensor
    remainder: Tensor
    published: Tensor
    iterations: int


@dataclass(frozen=True)
class Objective:
    """Sum of the rows' losses ``+ lam / 2 ||theta||^2 + <noise, theta>``, with features left out, K choices of them.

    Attributes:
        design: the data X, (n, p).
        y: classes, int64 (n,).
        loss: of the rows.
        lam: > 0, not multiplied by the number of rows.
        noise: (p, C).
        active: weights of the rows, 0 or 1, (n,).
        kept: weights of the features, 0 or 1, (p, K): parameters of those left out are held at 0.
        spectral_norm: at least that of X.
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
        left = v - self._mask * (_transposed_times(self.design, self.loss.curve(w, u)) + self.lam * d)
        return self._judged(d, u, left, iterations)

    def newton(self, theta: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Step, list[int]]:
        """Newton steps from parameters (p, K, C): where they lead, the last one, and the iterations of each.

        Several problems are solved in float32 where the tolerance allows, all but the parameters themselves.
        """
        design = self._search_design(theta, tolerance)
        z, iterations = _times(design, theta.to(design.dtype)), []
        for _ in range(steps):
            p = self.loss.probabilities(z)
            residual, w = self._residual(p), self._weights(p)
            d, taken = self._solve(w, -self._gradient(theta, residual, design), tolerance)
            u = _times(design, d.to(design.dtype))
            theta, z = theta + d, z + u
            iterations.append(taken)
        left = self._gradient(theta, residual + self.loss.curve(w, u), design)
        return theta, self._judged(d, u, left, taken), iterations

    def _weights(self, p: Tensor) -> Tensor:
        return self.loss.weights(p) * self.active.to(p)[:, None, None]

    def _search_design(self, v: Tensor, tolerance: float) -> Design:
        """The data in float32 where several systems are solved by conjugate gradients and the tolerance allows."""
        features, systems, columns = v.shape
        single = systems > 1 and features * columns > MAX_DENSE_COLUMNS and tolerance >= SINGLE
        return self.design.single if single else self.design

    def _solve(self, w: Tensor, v: Tensor, tolerance: float) -> tuple[Tensor, int]:
        if v.shape[0] * v.shape[2] <= MAX_DENSE_COLUMNS:
            return self._direct(w, v), 0
        return self._iterative(w, v, tolerance)

    def _judged(self, d: Tensor, u: Tensor, left: Tensor, iterations: int) -> Step:
        moved = u * self.active.to(u)[:, None, None]
        return Step(
            d,
            u,
            linear=_norm(left),
            remainder=self.spectral_norm * self.loss.remainder(moved).norm(dim=0),
            published=self.spectral_norm * _norm(d) * _norm(moved) / 4,
            iterations=iterations,
        )

    def _direct(self, w: Tensor, v: Tensor) -> Tensor:
        """By Cholesky factors of the Hessians, which are products with the unit vectors."""
        features, systems, columns = v.shape
        units = torch.eye(features * columns, dtype=v.dtype).view(features, columns, -1).transpose(1, 2)
        d = torch.empty_like(v)
        for k in range(systems):
            mask = self._mask[:, k : k + 1]
            parts = [
                mask * _transposed_times(self.design, self.loss.curve(w[:, k : k + 1], self.times(mask * part)))
                for part in units.split(32, dim=1)
            ]
            hessian = torch.cat(parts, 1).transpose(0, 1).reshape(features * columns, -1)
            hessian.diagonal().add_(self.lam)
            factor = torch.linalg.cholesky((hessian + hessian.T) / 2)
            d[:, k] = torch.cholesky_solve(v[:, k].reshape(-1, 1), factor).view(features, columns)
        return d * self._mask

    def _iterative(self, w: Tensor, v: Tensor, tolerance: float) -> tuple[Tensor, int]:
        """By conjugate gradients."""
        design = self._search_design(v, tolerance)
        w, mask = w.to(design.dtype), self._mask.to(design.dtype)

        def product(d: Tensor, systems: Tensor) -> Tensor:
            nonlocal w, mask
            if len(systems) < w.shape[1]:  # some are done
                w, mask = w[:, open_[systems]], mask[:, open_[systems]]
                open_[systems] = torch.arange(len(systems))
            image = _transposed_times(design, self.loss.curve(w, _times(design, d)))
            return mask * image + self.lam * d

        open_ = torch.arange(v.shape[1])  # where the systems that are left stand in w
        d, iterations = conjugate_gradients(product, v.to(design.dtype), tolerance, CG_ITERATIONS)
        return d.to(v.dtype), iterations

    def minimise(self, tolerance: float) -> tuple[Tensor, float]:
        """The minimiser (p, 1, C) of a single objective by Newton's method from zero, and its gradient's norm.

        Steps are halved until the objective falls. The norm exceeds `tolerance` where rounding allows no less.
        """
        theta = torch.zeros(self.kept.shape[0], 1, self.noise.shape[1], dtype=torch.float64)
        z = self.times(theta)
        first, value = None, self.value(theta, z)
        for _ in range(NEWTON_STEPS):
            gradient = self.gradient(theta, z)
            norm = float(_norm(gradient))
            first = norm if first is None else first
            if norm <= tolerance:
                break
            step = self.step(z, -gradient, min(0.1, (norm / first) ** 0.5))
            slope = _dot(gradient, step.d)
            for halvings in range(HALVINGS):
                length = 0.5**halvings
                moved = theta + length * step.d, z + length * step.u
                reached = self.value(*moved)
                if reached <= value + 1e-4 * length * slope + 1e-13 * value.abs():  # what rounding may add
                    break
            (theta, z), value = moved, reached
        return theta, float(_norm(self.gradient(theta, z)))


def _times(design: Design, theta: Tensor) -> Tensor:
    return design.times(theta.flatten(1)).reshape(-1, *theta.shape[1:])


def _transposed_times(design: Design, u: Tensor) -> Tensor:
    return design.transposed_times(u.flatten(1)).reshape(-1, *u.shape[1:])


def _norm(a: Tensor) -> Tensor:
    """Norms (K,) of K matrices."""
    return _dot(a, a).sqrt()
