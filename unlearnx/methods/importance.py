"""Importance of every parameter to the forget set and to the retain set."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unlearnx._data import Data, drawn, size
from unlearnx._vectors import Vector
from unlearnx.curvature.fisher import FISHER_TYPES, fisher_diagonal
from unlearnx.methods.base import Method, Work
from unlearnx.methods.label_free import label_free_importance
from unlearnx.methods.stored import training_samples

LABEL_FREE = "label_free"
IMPORTANCES = (*FISHER_TYPES, LABEL_FREE)
MOST_SAMPLES = 10_000  # of a set, that importances are measured on where the strength is to be found


def check_importance(fisher_type: str) -> None:
    """Refuse an unknown kind of importance.

    Raises:
        ValueError: it is not one of IMPORTANCES.
    """
    if fisher_type not in IMPORTANCES:
        raise ValueError(f"fisher_type is {fisher_type!r}, expected one of {', '.join(IMPORTANCES)}")


@dataclass(frozen=True)
class Importance:
    """Mean importances of the chosen parameters over the forget set, the retain set, and all data."""

    forget: Vector
    retain: Vector
    full: Vector

    @classmethod
    def measure(cls, method: Method, work: Work, fisher_type: str) -> Importance:
        """Compute the importances for the present model, in one pass over all data.

        Where the method finds its strength by itself, at most 10,000 samples of either set are read, drawn at random.

        Args:
            method: its loss, batch size, seed and progress are used.
            work: the model and the request.
            fisher_type: that of the method's factors where it has some; else as in
                :func:`unlearnx.curvature.fisher_diagonal`, or ``"label_free"``, see :func:`label_free_importance`.
                ``"batch"`` takes a second pass over all data, since
                their batches differ from those of the two sets.
        """
        request, n, factors = work.request, training_samples(work), method._stored
        m = len(request.forget)

        def mean(data: Data, kind: str) -> Vector:
            if method._finds_strength:
                data = drawn(data, MOST_SAMPLES, torch.Generator().manual_seed(method.seed))
            return (
                label_free_importance(work, data) if kind == LABEL_FREE else diagonal(method, work, data, kind, "mean")
            )

        if factors is not None:
            forget = mean(request.forget_set, factors.info["fisher_type"])
            full = factors.fisher_diagonal
            if full is None:
                raise ValueError("factors: hold no exact diagonal, expected those of fit(..., diagonal=True)")
            retain = {name: (n * full[name] - m * forget[name]).clamp(min=0) / (n - m) for name in work.names}
            return cls(forget, retain, full)
        if fisher_type == "batch":
            forget, retain, full = (
                diagonal(method, work, data, "batch", "mean")
                for data in (request.forget_set, request.retain_set, request.dataset)
            )
            return cls(forget, retain, full)
        forget, retain = (mean(data, fisher_type) for data in (request.forget_set, request.retain_set))
        share = m / n
        full = {name: share * forget[name] + (1 - share) * retain[name] for name in work.names}
        return cls(forget, retain, full)


def mean_entry(vector: Vector) -> float:
    """The mean of all entries."""
    entries = sum(t.numel() for t in vector.values())
    return sum(float(t.sum(dtype=torch.float64)) for t in vector.values()) / entries


def diagonal(method: Method, work: Work, data: Data, fisher_type: str, reduction: str) -> Vector:
    """Importances over one set, as the mean or sum of squared gradients (see :meth:`Importance.measure`)."""
    work.gradient_evaluations += size(data)
    return fisher_diagonal(
        work.model,
        method.loss_fn,
        data,
        params=work.names,
        fisher_type=fisher_type,
        reduction=reduction,
        batch_size=method.batch_size,
        compute_dtype=work.pace.autocast,
        generator=torch.Generator().manual_seed(method.seed),
        progress=method.progress,
    )
