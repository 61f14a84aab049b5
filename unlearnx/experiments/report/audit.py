"""The page and the table of an audit of one unlearning run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnx.experiments.report.frame import Page, terminal_table
from unlearnx.experiments.robustness import BITS, COUNTS, PROBE

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class _Measure:
    """How a measure is shown: a share in per cent, anything else as a number."""

    key: str
    title: str
    share: bool = True

    def show(self, measures: dict[str, float | None], samples: int | None) -> str:
        """The value; a share of so many samples with its interval."""
        value = measures.get(self.key)
        if value is None:
            return "-"
        if not self.share:
            return f"{value:.4f}"
        return f"{100 * value:.2f} %" + ("" if samples is None else _interval(value, samples))


_ACCURACIES = {"forget": "forget set", "retain": "retain set", "test": "test", "test_forgotten": "test"}
_ATTACKS = {
    "mia_salun": "SalUn: taken for unseen",
    "mia_ssd": "SSD: taken for training data",
    "mia_starter_kit": "starter kit: told from test data",
    "mia_min_k": "Min-K%: area under its curve, 50 % is guessing",
}
_COME_BACK = {
    **{f"rounded_{bits}": f"comes back with weights of {bits} bits" for bits in BITS},
    **{f"relearned_{k}": f"comes back of the rest, {k} learned again" for k in COUNTS},
    PROBE: "found by a linear probe",
}
_OF_TEXTS = {"probability": "probability of a token", "extraction": "completed without a fault"}


def _interval(share: float, samples: int) -> str:
    """The 95 % interval of a share of so many samples in per cent, after Wilson."""
    from scipy.stats import binomtest  # not at the top: it takes long to import

    low, high = binomtest(round(share * samples), samples).proportion_ci(method="wilson")
    return f" ({100 * low:.1f} to {100 * high:.1f})"


_EVIDENCE = {
    "accuracy": "its labels are given",
    "confidence": "mean probability of its labels",
    "loss": "mean loss, nats",
    "attack": "told from held-out data by its loss, beyond guessing",
}


def page(audit: dict[str, Any]) -> Page:
    """The page: the request, the method, measures before and after, the change of the weights, and all hashes."""
    return Page(
        "audit.html",
        {},
        {
            "columns": list(audit["measures"]),
            "rows": _rows(audit, {**audit.get("sizes", {}), **audit.get("read", {})}),  # earlier audits have none
            "come_back": any(key in audit["measures"]["before"] for key in _COME_BACK),
            "evidence": _evidence(audit),
            "cards": _cards(audit),
            "hashes": _hashes(audit),
            "settings": {k: v for k, v in audit["method"]["settings"].items() if k not in ("seed", "progress")},
        },
    )


def table(audit: dict[str, Any]) -> Table:
    """Measures before and after, for the terminal."""
    title = f"{audit['request']['points']:,} of {audit['request']['of']:,} samples to forget"
    table = terminal_table(title, "measure", *audit["measures"])
    for title, cells in _rows(audit, {}):
        table.add_row(title, *cells)
    return table


def _rows(audit: dict[str, Any], sizes: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """The measures with their values before, after and of a retrained model; of sets of known sizes with intervals."""
    samples = {f"{name}_accuracy": n for name, n in sizes.items()} | {key: sizes.get(key) for key in _COME_BACK}
    if "forget" in sizes:
        samples |= dict.fromkeys(("mia_salun", "mia_ssd"), sizes["forget"])  # both are shares of the forget set
    return [
        (m.title, [m.show(values, samples.get(m.key)) for values in audit["measures"].values()])
        for m in _measures(audit)
    ]


def _evidence(audit: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """What the verdict rests on: measures before, after, and what is expected of a model that never saw the set."""
    found = audit.get("evidence") or {}
    if not found.get("before") or not found.get("after"):
        return []
    rows = []
    for key, title in _EVIDENCE.items():
        level = found["unseen"].get(key)
        if level is None and found["before"].get(key) is None:
            continue
        expected = "-" if level is None else f"{_shown(key, level['estimate'])} ({_ends(key, level)})"
        rows.append((title, [*(_shown(key, found[when].get(key)) for when in ("before", "after")), expected]))
    return rows


def _shown(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if key == "loss" else f"{100 * value:.1f} %"


def _ends(key: str, level: dict[str, float]) -> str:
    unit = 1 if key == "loss" else 100
    return " to ".join(f"{unit * level[end]:.{3 if key == 'loss' else 1}f}" for end in ("low", "high"))


def _measures(audit: dict[str, Any]) -> list[_Measure]:
    """The measures that the audit has, in the order in which they are shown."""
    c = audit["request"]["class"]
    places = dict(_ACCURACIES)
    if "paraphrases_probability" in audit["measures"]["before"]:
        places["paraphrases"] = "forget set in other words"
    if c is not None:
        places |= {"test": "test, the other classes", "test_forgotten": f"test, class {c}"}
    shown = [_Measure(f"{key}_accuracy", f"accuracy, {title}") for key, title in places.items()]
    shown += [_Measure(f"{key}_loss", f"mean loss, {title}", share=False) for key, title in places.items()]
    shown += [
        _Measure(f"{key}_{kind}", f"{title}, {place}")
        for kind, title in _OF_TEXTS.items()
        for key, place in places.items()
    ]
    shown += [_Measure(key, title) for key, title in {**_ATTACKS, **_COME_BACK}.items()]
    return [measure for measure in shown if measure.key in audit["measures"]["before"]]


def _cards(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """The main values and their titles, for the cards at the top."""
    before, after = (audit["measures"].get(name) for name in ("before", "after"))
    rest = ", the other classes" if audit["request"]["class"] is not None else ""
    titles = {
        "forget_accuracy": "accuracy on the forget set",
        "retain_accuracy": "accuracy on the retain set",
        "test_accuracy": f"accuracy on test data{rest}",
        "forget_probability": "mean probability of a token of the forget set",
        "retain_probability": "mean probability of a token of the retain set",
        "mia_salun": "of the forget set taken for unseen (SalUn's attack)",
    }
    cards = []
    for key, title in titles.items():
        if before.get(key) is not None:
            values = [f"{100 * m[key]:.1f}" for m in (before, after) if m is not None and m[key] is not None]
            cards.append((" → ".join(values) + " %", title + ("" if after is None else ", before and after")))
    return cards


def _hashes(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """What was hashed, and its SHA-256."""
    rows = []
    for name, entry in audit["weights"].items():
        if entry is not None:
            rows.append((f"weights {name}: the file {entry['file']}", entry["sha256"]))
            rows.append((f"weights {name}: tensors", entry["tensors_sha256"]))
    sets = {"train": "training data", "forget": "forget set", "paraphrases": "paraphrases", "test": "test data"}
    for name, title in sets.items():
        entry = audit["data"].get(name)
        if entry is not None:
            rows.append((f"{title}: {entry['samples']:,} samples", entry["sha256"]))
    rows.append(("list of indices to forget", audit["request"]["sha256"]))
    return rows
