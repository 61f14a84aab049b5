"""Rows of the benchmark in its file: what all methods on one model share is there once; what follows from it, never."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.untuned.study import judged

SHARED = ("cell", "what", "is_class", "seed", "before", "retrained", "retraining_seconds")
JUDGED = ("near", "kept", "wrong")


def cases_of(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows by cell and seed: each case has what its rows share, and the ``rows`` with the rest."""
    cases: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        shared = {key: row[key] for key in SHARED}
        case = cases.setdefault((row["cell"], row["seed"]), {**shared, "rows": []})
        if any(case[key] != value for key, value in shared.items()):
            raise ValueError(f"rows of {row['cell']}, seed {row['seed']}: are of several models, expected one")
        case["rows"].append({key: value for key, value in row.items() if key not in (*SHARED, *JUDGED)})
    return list(cases.values())


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result, each with all that it is about, judged."""
    rows = [{**{key: case[key] for key in SHARED}, **row} for case in result["cases"] for row in case["rows"]]
    return [{**row, **judged(row, row["is_class"])} for row in rows]
