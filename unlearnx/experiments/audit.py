"""What an audit says of a request, a method and its outcome, whatever kind of model was made to forget."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnx._batches import Nest
from unlearnx._pairs import leaves
from unlearnx.experiments import report
from unlearnx.experiments.runs import describe
from unlearnx.experiments.weights import tensor_hash
from unlearnx.methods import Method, Outcome, Request

MAX_LISTED = 10  # indices, and changed tensors


def check_takes_factors(method: Method, factors: Path | None) -> None:
    """Refuse stored factors for a method without a place for them.

    Raises:
        ValueError: the message names the method.
    """
    if factors is not None and not hasattr(method, "factors"):
        raise ValueError(f"factors: {type(method).__name__} takes none, expected a method with a field of that name")


def of_run(
    method: Method,
    request: Request,
    outcome: Outcome,
    *,
    forget_class: int | None = None,
    started: datetime,
    where: Any,
) -> dict[str, Any]:
    """The request, the method and what it says of its own work; where and when that was."""
    return {
        "request": _described(request, forget_class),
        "method": {
            "name": type(method).__name__,
            "description": describe(method),
            "settings": {f.name: _plain(getattr(method, f.name)) for f in dataclasses.fields(method)},
            "seed": method.seed,
        },
        "applied": outcome.applied,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "gradient_evaluations": outcome.gradient_evaluations,
        "info": outcome.info,
        "device": str(where),
        "date": started.isoformat(timespec="seconds"),
        "environment": report.environment(),
    }


def fingerprint(x: Nest, y: Tensor) -> dict[str, Any]:
    """Number of samples, and the hash of all of them."""
    named = {path: leaf for path, leaf in leaves("x", x) if isinstance(leaf, Tensor)}
    return {"samples": len(y), "sha256": tensor_hash({**named, "y": y})}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Any]:
    """The change of the weights in L2 norm: of all, and of the tensors that changed most."""
    rows = []
    for name, old in before.items():
        if old.is_floating_point():
            distance, norm = (t.double().norm().item() for t in (after[name].double() - old.double(), old))
            rows.append(
                {"name": name, "values": old.numel(), "l2": distance, "relative": distance / norm if norm else None}
            )
    rows.sort(key=lambda row: -row["l2"])
    return {
        "l2": math.sqrt(sum(row["l2"] ** 2 for row in rows)),
        "norm": math.sqrt(sum(t.double().square().sum().item() for t in before.values() if t.is_floating_point())),
        "changed": sum(not torch.equal(after[name], old) for name, old in before.items()),
        "tensors": len(before),
        "farthest": [row for row in rows[:MAX_LISTED] if row["l2"] > 0],
    }


def _described(request: Request, forget_class: int | None) -> dict[str, Any]:
    indices = request.forget
    return {
        "kind": "indices" if forget_class is None else "class",
        "class": forget_class,
        "points": len(indices),
        "of": len(request.retain) + len(indices),
        "first": indices[:MAX_LISTED].tolist(),
        "sha256": hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest(),
    }


def _plain(value: Any) -> Any:
    """A setting of a method as a JSON value."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return getattr(value, "__name__", None) or str(value)
