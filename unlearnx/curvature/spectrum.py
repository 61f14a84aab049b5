"""The smallest and the largest eigenvalue of a symmetric matrix, from products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_one
from unlearnx._distributed import broadcast_


class NotFinite(ValueError):
    """A product with the curvature has values that are NaN or infinite."""


@dataclass
class Spectrum:
    """The smallest and the largest eigenvalue, as estimated.

    Attributes:
        smallest, largest: estimates; the true extremes are at most `smallest` and at least `largest`.
        smallest_error, largest_error: an eigenvalue lies within this distance of the estimate.
        iterations: products taken.

    Example:
        >>> model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
        >>> spectrum = CurvatureOperator(model, nn.functional.cross_entropy, (x, y), damping=0.1).spectrum()
        >>> 0.1 <= spectrum.smallest + spectrum.smallest_error, spectrum.smallest < spectrum.largest
        (True, True)
    """

    smallest: float
    largest: float
    smallest_error: float
    largest_error: float
    iterations: int


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float) -> Spectrum:
    """The smallest and the largest eigenvalue of a matrix, from its Krylov space.

    Only two directions are kept. Without orthogonalisation against all earlier ones the iteration finds the same
    eigenvalues several times, which does not change the extreme ones.

    Args:
        product: multiplies the matrix by a vector (P,).
        start: a random vector (P,).
        iterations: most products.
        tolerance: stop when both error bounds are at most this, relative to the largest absolute value found.

    Raises:
        NotFinite: a product is not finite.
        ValueError: `iterations` or `tolerance` are not positive.

    Source: Paige, "Accuracy and effectiveness of the Lanczos algorithm for the symmetric eigenproblem", 1980.
    """
    check_at_least_one(iterations=iterations)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}, expected a number > 0")
    direction, previous, beta = start / start.norm(), torch.zeros_like(start), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        image = product(direction)
        alpha = float(broadcast_(torch.dot(direction, image)))
        image = image.sub_(direction, alpha=alpha).sub_(previous, alpha=beta)
        beta = float(broadcast_(image.norm()))
        diagonal.append(alpha)
        if not (abs(alpha) + beta < float("inf")):
            raise NotFinite(f"the curvature product is not finite at iteration {len(diagonal)}")
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if off_diagonal:
            beside = torch.tensor(off_diagonal, dtype=torch.float64)
            tridiagonal += torch.diag(beside, 1) + torch.diag(beside, -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        errors = (beta * vectors[-1]).abs()
        found = Spectrum(float(values[0]), float(values[-1]), float(errors[0]), float(errors[-1]), len(diagonal))
        size = float(values.abs().max())
        exhausted = beta <= 1e-6 * size or len(diagonal) == min(iterations, len(start))
        if exhausted or max(found.smallest_error, found.largest_error) <= tolerance * size:
            return found
        off_diagonal.append(beta)
        direction, previous = image / beta, direction


def rademacher(samples: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Random signs, (samples, size)."""
    return torch.randint(2, (samples, size), dtype=torch.int8, generator=generator).mul_(2).sub_(1)
