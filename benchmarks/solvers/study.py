"""One direction found in six ways at one damping: what is forgotten, at what cost, and how well the system is solved.

Seconds are those of the processor, of all threads, so that other work on the machine does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from statistics import median
from time import process_time
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.solvers.cases import CASES, Case
from benchmarks.untuned.sources import Sources, at_hand
from unlearnx._data import drawn
from unlearnx.curvature import EKFAC, ConjugateGradient, CurvatureOperator, LiSSA, NystromPCG
from unlearnx.methods import KFADE, Method, SecondOrder

MOST_PRODUCTS = 100  # as many passes over the data as LiSSA takes in its publication
CURVATURE_SAMPLES = 4096
DAMPING = 1e-2  # in units of the largest eigenvalue of the curvature of what stays
SOLVERS = {
    "LiSSA": LiSSA(damping=0.0, batch_size=None, recursion_depth=MOST_PRODUCTS),
    "CG": ConjugateGradient(iterations=MOST_PRODUCTS),
    "Nystrom-PCG": NystromPCG(iterations=MOST_PRODUCTS),
    "EK-FAC": EKFAC(),
    "EK-FAC-CG": ConjugateGradient(iterations=MOST_PRODUCTS, preconditioner=EKFAC()),
}
KFADE_NAME = "K-FADE"
NAMES = (*SOLVERS, KFADE_NAME)


def damping_of(case: Case) -> float:
    """A hundredth of the largest eigenvalue of the Gauss-Newton matrix of what stays, or of the corrected data.

    It sees no test data, and no result of a method.
    """
    data = drawn(case.request.target, CURVATURE_SAMPLES, torch.Generator().manual_seed(0))
    operator = CurvatureOperator(case.model, F.cross_entropy, data, params=case.settings.get("params"), batch_size=1024)
    return DAMPING * operator.top_eigenvalue(generator=torch.Generator().manual_seed(0))


def method_of(name: str, case: Case, damping: float, seed: int) -> Method:
    """The method with its step found by itself, and nothing else chosen but what the case says."""
    common = {"damping": damping, "seed": seed, **case.settings}
    if name == KFADE_NAME:
        return KFADE(**common)
    return SecondOrder(SOLVERS[name], curvature_samples=CURVATURE_SAMPLES, **common, **case.influence)


def run(
    studies: Iterable[str], seeds: int, names: Iterable[str], sources: Sources, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A row for each study, seed and way. Studies whose data or models are not at hand are left out, and said so."""
    for study in studies:
        own = CASES[study]
        for seed, case in at_hand(study, own.seeds[:seeds], partial(own.make, sources), say):
            damping = damping_of(case)
            known = {"study": study, "seed": seed, "damping": damping}
            yield {**known, "way": "before", "measures": case.measure(case.model)}
            for name in names:
                row = {**known, "way": name, **_measured(case, method_of(name, case, damping, seed))}
                say(f"{study}, seed {seed}, {name}: {row}")
                yield row
            yield {**known, "way": "retrained", "measures": case.retrained}


def _measured(case: Case, method: Method) -> dict[str, Any]:
    start = process_time()
    outcome = method(case.model, case.request)
    seconds = process_time() - start
    steps = outcome.info.get("steps", [])
    residuals = [step["residual"] for step in steps if "residual" in step]
    return {
        "measures": case.measure(outcome.model),
        "applied": outcome.applied,
        "reason": outcome.reason,
        "seconds": seconds,
        "residual": max(residuals, default=None),
        "products": sum(step.get("iterations", 0) for step in steps),
        "step_sizes": [step.get("step") for step in steps] or [outcome.info.get("step")],
    }


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians over the seeds of each study and way."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["study"], {}).setdefault(row["way"], []).append(row)
    return {study: {way: _medians(own) for way, own in ways.items()} for study, ways in found.items()}


def _medians(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    costs = ("seconds", "residual", "products")
    numbers = [{**row["measures"], **{key: row[key] for key in costs if key in row}} for row in rows]
    keys = [key for key in numbers[0] if all(entry[key] is not None for entry in numbers)]
    return {key: median(entry[key] for entry in numbers) for key in keys}
