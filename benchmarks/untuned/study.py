"""Every method with its default arguments on every cell, beside retraining: does it forget, and does it say so?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from statistics import mean
from typing import Any

from benchmarks.untuned.cells import CELLS, Case
from benchmarks.untuned.sources import Sources, at_hand
from unlearnx._data import size
from unlearnx.methods import METHODS, Automatic, Method, Outcome

Maker = Callable[[Case], Method]

NEAR_CLASS, NEAR_SAMPLES = 0.05, 0.10  # accuracy on the forget set from the retrained model's
KEPT_CLASS, KEPT_SAMPLES = 0.02, 0.01  # accuracy on test data that may be lost
FAR = 0.10  # a verdict "yes" at more than this from the retrained model is wrong
LEFT_OUT = ("retrain",)
HELD_OUT = "auto-held-out"  # `auto` that is given held-out data, without which some levels are not known well


def _untouched(kind: type[Method]) -> Maker:
    return lambda case: kind(loss_fn=case.loss_fn)


MAKERS: dict[str, Maker] = {
    **{name: _untouched(kind) for name, kind in METHODS.items()},
    HELD_OUT: lambda case: Automatic(loss_fn=case.loss_fn, reference=case.held),
}
"""Methods with nothing tuned, by their names."""


def methods(names: Iterable[str] | None = None) -> dict[str, Maker]:
    """What makes these methods; all that need no retraining and no held-out data where none are named."""
    return {name: MAKERS[name] for name in (names or [n for n in METHODS if n not in LEFT_OUT])}


def run(
    cells: Iterable[str],
    seeds: int,
    chosen: Mapping[str, Maker],
    sources: Sources,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """A row for each method, cell and seed. Cells whose data or models are not at hand are left out, and said so."""
    for name in cells:
        cell = CELLS[name]
        for seed, case in at_hand(name, cell.seeds[:seeds], partial(cell.build, sources=sources), say):
            truth = case.retrained_accuracy
            say(
                f"{name}, seed {seed}: forget {case.accuracy['forget']:.1%} (retrained {truth['forget']:.1%}), test "
                f"{case.accuracy['test']:.1%}, retrained in {case.seconds:.1f} s"
            )
            for method, made in chosen.items():
                known = {"cell": name, "what": CELLS[name].what, "is_class": CELLS[name].is_class, "seed": seed}
                row = {**known, "method": method, **_measured(case, made)}
                row.update(judged(row, CELLS[name].is_class))
                say(described(row))
                yield row


def _measured(case: Case, made: Maker) -> dict[str, Any]:
    row: dict[str, Any] = {
        "before": case.accuracy,
        "retrained": case.retrained_accuracy,
        "retraining_seconds": case.seconds,
    }
    try:
        outcome = made(case)(case.model, case.request)
    except ValueError as error:
        return {**row, "refused": str(error)}
    return {
        **row,
        "after": case.measure(outcome.model),
        "applied": outcome.applied,
        "forgotten": outcome.forgotten,
        "expected": outcome.evidence["unseen"]["accuracy"],
        "seconds": outcome.seconds,
        "passes": outcome.gradient_evaluations / size(case.request.target),
        "chose": _chosen(outcome),
    }


def _chosen(outcome: Outcome) -> Any:
    return outcome.info.get("method") or {
        name: outcome.info[name] for name in ("alpha", "ratio", "beta", "rates") if name in outcome.info
    }


def judged(row: Mapping[str, Any], is_class: bool) -> dict[str, bool]:
    """Whether a row came near to retraining at little cost, and whether its verdict is wrong."""
    if "after" not in row:
        return {"near": False, "kept": False, "wrong": False}
    away = abs(row["after"]["forget"] - row["retrained"]["forget"])
    lost = row["before"]["test"] - row["after"]["test"]
    return {
        "near": away <= (NEAR_CLASS if is_class else NEAR_SAMPLES),
        "kept": lost <= (KEPT_CLASS if is_class else KEPT_SAMPLES),
        "wrong": row["forgotten"] == "yes" and away > FAR,
    }


def described(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    if "after" not in row:
        return f"  {row['method']:20} refused: {row['refused']}"
    near = "near " if row["near"] and row["kept"] else "     "
    return (
        f"  {row['method']:20} {near} forget {row['after']['forget']:6.1%}  test {row['after']['test']:6.1%}  "
        f"{row['forgotten']:8}{' WRONG' if row['wrong'] else ''} {row['seconds']:6.1f} s "
        f"{row['passes']:5.1f} passes  {row['chose']}"
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many methods come near in each cell, and verdicts against the distance to the retrained model."""
    cells = {}
    for name in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == name]
        seeds = {row["seed"] for row in own}
        near = [
            sum(r["near"] and r["kept"] for r in own if r["seed"] == seed and r["method"] not in ("auto", HELD_OUT))
            for seed in seeds
        ]
        cells[name] = {"methods": near, "auto": [r["near"] and r["kept"] for r in own if r["method"] == "auto"]}
    verdicts: dict[str, dict[str, int]] = {}
    for row in rows:
        if "after" in row:
            away = abs(row["after"]["forget"] - row["retrained"]["forget"])
            where = "within 5 points" if away <= 0.05 else "5 to 10" if away <= FAR else "more than 10"
            counts = verdicts.setdefault(row["forgotten"], {})
            counts[where] = counts.get(where, 0) + 1
    return {"cells": cells, "verdicts": verdicts, "level": _level_errors(rows)}


def _level_errors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the estimates of an unseen model's accuracy, one for each cell and seed."""
    known = {(r["cell"], r["seed"]): r for r in rows if r.get("expected") is not None}.values()
    if not known:
        return {}
    errors = [abs(r["expected"]["estimate"] - r["retrained"]["forget"]) for r in known]
    held = [r["expected"]["low"] - 1e-9 <= r["retrained"]["forget"] <= r["expected"]["high"] + 1e-9 for r in known]
    return {"mean_absolute_error": mean(errors), "intervals_right": sum(held), "of": len(held)}
