"""Both ends of a symmetric matrix's spectrum, from products alone."""

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
    """Extreme eigenvalues.

    Attributes:
        smallest, largest: estimates from inside of the spectrum.
        smallest_error, largest_error: bounds of the distance from each to an eigenvalue.
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
    """Extreme eigenvalues of the matrix behind `product`, from its Krylov space.

    Old directions are not kept: without orthogonalisation against them eigenvalues that were found appear again,
    which does not matter for the extreme ones.

    Args:
        product: of the matrix with a vector (P,).
        start: random, (P,).
        iterations: most products.
        tolerance: both error bounds at which to stop, relative to the largest modulus.

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
            sides = torch.tensor(off_diagonal, dtype=torch.float64)
            tridiagonal += torch.diag(sides, 1) + torch.diag(sides, -1)
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
