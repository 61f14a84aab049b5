"""Noise in a share of the training samples: random wrong labels, or noise in the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx._checks import check_at_least_zero, check_fraction
from unlearnx.data.poison import Poison


def noisy_labels(labels: Tensor, share: float, *, classes: int = 10, seed: int = 0) -> Poison:
    """Symmetric label noise: a random share of the samples gets one of the other classes as its label.

    Args:
        labels: the clean labels, int64 (N,).
        share: of the samples, 0 to 1; their number is rounded.
        classes: number of classes; each of the other classes is equally likely.
        seed: of the choice of samples and labels.

    Raises:
        ValueError: the share is not in [0, 1], or there are fewer than two classes.

    Example:
        >>> y = torch.arange(100) % 10
        >>> noise = noisy_labels(y, 0.2)
        >>> int((noise.apply(y) != y).sum())
        20

    Source: Natarajan et al., "Learning with Noisy Labels", NeurIPS 2013.
    """
    if classes < 2:
        raise ValueError(f"classes is {classes}, expected at least 2")
    generator = torch.Generator().manual_seed(seed)
    indices = _drawn(len(labels), share, generator)
    true = labels[indices].clone()
    shift = torch.randint(1, classes, true.shape, generator=generator)
    return Poison(indices, (true + shift) % classes, true)


def noisy_inputs(x: Tensor, share: float, *, deviation: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normal noise in the inputs of a random share of the samples.

    Args:
        x: the clean inputs, floating point (N, ...).
        share: of the samples, 0 to 1; their number is rounded.
        deviation: standard deviation of the noise, in the unit of `x`: for normalised images,
            multiples of their own standard deviation.
        seed: of the choice of samples and the noise.

    Returns:
        A copy of `x` with the noise added, and the indices of the noisy samples, ascending, int64.

    Raises:
        ValueError: the share is not in [0, 1], or the deviation is negative or not finite.

    Example:
        >>> x = torch.zeros(100, 1, 8, 8)
        >>> noisy, indices = noisy_inputs(x, 0.2)
        >>> len(indices), (noisy != x).flatten(1).any(1).nonzero().flatten().equal(indices)
        (20, True)
    """
    check_at_least_zero(deviation=deviation)
    generator = torch.Generator().manual_seed(seed)
    indices = _drawn(len(x), share, generator)
    noisy = x.clone()
    noise = torch.randn(noisy[indices].shape, dtype=x.dtype, generator=generator)
    noisy[indices] += deviation * noise
    return noisy, indices


def _drawn(n: int, share: float, generator: torch.Generator) -> Tensor:
    check_fraction(share=share)
    return torch.randperm(n, generator=generator)[: round(share * n)].sort().values
