"""Arithmetic of parameter-keyed dictionaries."""

from __future__ import annotations

import torch
from torch import Tensor

Vector = dict[str, Tensor]


def dot(a: Vector, b: Vector) -> Tensor:
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()


def norm(a: Vector) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in a.values()])))


def scaled(a: Vector, factor: float) -> Vector:
    return {k: t * factor for k, t in a.items()}


def added(a: Vector, b: Vector, factor: float = 1.0) -> Vector:
    """a + factor * b."""
    return {k: torch.add(a[k], b[k], alpha=factor) for k in a}


def check_like(what: str, v: Vector, reference: Vector) -> None:
    """Refuse a vector whose keys or shapes are not those of `reference`.

    Raises:
        ValueError: the message names the key and both shapes.
    """
    if v.keys() != reference.keys():
        raise ValueError(f"{what}: has keys {sorted(v)}, expected {sorted(reference)}")
    for key, t in v.items():
        if t.shape != reference[key].shape:
            raise ValueError(f"{what}[{key!r}] has shape {list(t.shape)}, expected {list(reference[key].shape)}")
