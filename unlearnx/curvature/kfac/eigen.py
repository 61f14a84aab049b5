"""Eigenbases of covariances."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx import _distributed as distributed

MOST_ERROR = 1e-3  # of the basis in float32, from orthonormal; beyond it float64 is used


def eigenbasis(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), ascending and at least zero, and eigenvectors in columns (n, n), in the matrix's dtype.

    A matrix is decomposed in its own dtype, and in float64 where that fails. The same in every process. Of matrices
    that are stacked along a first dimension, values and vectors are stacked too.
    """
    if covariance.dim() > 2:
        each = [eigenbasis(matrix) for matrix in covariance]
        return torch.stack([values for values, _ in each]), torch.stack([basis for _, basis in each])
    scale = covariance.diagonal().mean()
    scaled = covariance / scale if scale > 0 else covariance  # squares of tiny values would vanish
    scaled = (scaled + scaled.mT) / 2
    values, basis = _decomposed(scaled) or torch.linalg.eigh(scaled.double())
    values, basis = (distributed.broadcast_(t.to(covariance).contiguous()) for t in (values, basis))
    return values.clamp(min=0) * scale, basis


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    try:
        values, basis = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        return None
    error = basis.mT @ basis
    error.diagonal().sub_(1)
    return (values, basis) if bool(error.abs().max() <= MOST_ERROR) else None
