"""The report of forgetting experiments: every measure beside that of a retrained model."""

from __future__ import annotations

from typing import Any

from unlearnx.experiments.measures import NAMES
from unlearnx.experiments.report import forget_plots as plots
from unlearnx.experiments.report.forget_table import comparison, table
from unlearnx.experiments.report.frame import Page, refused
from unlearnx.experiments.report.nearness import far_from_retraining
from unlearnx.experiments.report.table_columns import (
    Cell,
    Column,
    Estimate,
    column,
    known,
    models_by_gap,
    speedup,
    speedups,
)
from unlearnx.experiments.robustness import described
from unlearnx.experiments.runs import slug

__all__ = ["comparison", "page", "table"]

MAIN = (
    "gap",
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "test_forgotten_accuracy",
    "mia_salun",
    "tow",
    "seconds",
    "gradient_ratio",
)
COME_BACK = (*described("images"),)
REFERENCES = ("original", "retrained")
NON_MEMBERS = {"test": "test images", "test_forgotten": "test images of the class"}


def page(result: dict[str, Any]) -> Page:
    """The report: accuracies, distances and costs against retraining, attacks, sweeps and saliency."""
    drawings = {}
    for name, draw in plots.DRAWINGS.items():
        if plots.has(result, name):
            drawings[name] = draw(result, wide=True)
            drawings[f"{name}_narrow"] = draw(result, wide=False)
    main, distances, attacks, come_back = _columns(result)
    return Page(
        "forget.html",
        drawings,
        {
            "models": [_row(result, name) for name in models_by_gap(result)],
            "main": main,
            "more": [columns for columns in (distances, attacks) if columns],
            "come_back": come_back,
            "forget": column(result, "forget_accuracy"),
            "gap": column(result, "gap"),
            "speedup": speedup(result, result["winner"]) if result["winner"] else None,
            "far": far_from_retraining(result, result["winner"]) if result["winner"] else [],
            "warnings": _warnings(result),
            "attacks": _attacks(result),
            "published": [_beside(result, table) for table in result.get("published", [])],
            "budget": result.get("budget"),
            "quality": _quality(result),
            "estimated": any(run[name].get("seconds_are_estimated") for run in result["runs"] for name in REFERENCES),
            "saliency": plots.saliency(result) if result["saliency"] else None,
            "shown": list(drawings),
            "slugs": {name: slug(name) for name in result["methods"]},
        },
    )


def _row(result: dict[str, Any], name: str) -> dict[str, str]:
    """A model's name, the CSS class of its row, and a note beside its name."""
    if name not in result["methods"]:
        return {"name": name, "kind": "reference", "note": ""}
    return {"name": name, "kind": "best" if name == result["winner"] else "", "note": refused(result, name)}


def _columns(result: dict[str, Any]) -> tuple[list[Column], list[Column], list[Column], list[Column]]:
    """The columns of the main measures and the speedup, of other measures, of attacks, and of what comes back.

    There are no empty ones.
    """
    found = [k for k in result["measures"] if any(Estimate.find(result, m, k) for m in result["summary"])]
    main = [column(result, key) for key in MAIN if key in found]
    attacks = [column(result, key) for key in found if key.startswith("mia_")]
    come_back = [column(result, key) for key in ("forget_accuracy", *COME_BACK) if key in found]
    others = [
        column(result, key) for key in found if not key.startswith("mia_") and key not in MAIN and key not in COME_BACK
    ]
    return [*main, speedups(result)], others, attacks, come_back if len(come_back) > 1 else []


def _warnings(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The first warning of each method that has any, and the number of seeds with a warning."""
    found = {}
    for name in result["methods"]:
        texts = [text for run in result["runs"] if (text := run["methods"][name]["warning"])]
        if texts:
            found[name] = {"text": texts[0], "seeds": len(texts)}
    return found


def _attacks(result: dict[str, Any]) -> dict[str, Any] | None:
    """Results of the attacks on the models whose confidences are shown, a row for each attack and non-members."""
    models = [name for name in ("original", result["winner"], "retrained") if name in result["attacks"]]
    rows = []
    for protocol, title in NAMES.items():
        for key, non_members in NON_MEMBERS.items():
            values = [result["attacks"][model].get(protocol, {}).get(key) for model in models]
            if any(known(value) for value in values):
                cells = [f"{100 * value:.1f}" if known(value) else Cell.text for value in values]
                rows.append((title, non_members, cells))
    return {"models": models, "rows": rows} if rows else None


def _beside(result: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A published table with our means: a row for each of its models, and the columns it has."""
    keys = [key for key in result["measures"] if any(key in row for row in table["rows"].values())]

    def shown(value: float | None, unit: str) -> str:
        return "" if value is None else f"{100 * value:.2f}" if unit == "%" else f"{value:.2f}"

    def cell(name: str, key: str) -> tuple[str, str]:
        ours, unit = Estimate.find(result, name, key), result["measures"][key]["unit"]
        theirs = shown(table["rows"][name].get(key), unit)
        if deviation := shown(table.get("deviations", {}).get(name, {}).get(key), unit):
            theirs = f"{theirs} \N{PLUS-MINUS SIGN} {deviation}"
        return shown(None if ours is None else ours.mean, unit), theirs

    rows = [(name, name in result["summary"], [cell(name, key) for key in keys]) for name in table["rows"]]
    return {**table, "columns": [result["measures"][key] for key in keys], "rows": rows}


def _quality(result: dict[str, Any]) -> dict[str, Any] | None:
    """The competition's score as rows: name, quality, score, and the per cent of the images in each bin of epsilon."""
    found = result.get("quality")
    if found is None:
        return None
    low, high = found["edges"][:-1], found["edges"][1:]
    bins = [f"{a:g} to {b:g}" if b is not None else f"{a:g} and more" for a, b in zip(low, high, strict=True)]
    rows = [
        (name, f"{row['quality']:.3f}", f"{row['score']:.3f}", [f"{100 * part:.1f}" for part in row["bins"]])
        for name, row in sorted(found["rows"].items(), key=lambda item: -item[1]["score"])
    ]
    return {"models": found["models"], "bins": bins, "rows": rows}
