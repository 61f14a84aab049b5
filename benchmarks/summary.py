"""The verdict of a run, in lines of 80 columns: what a pytest-benchmark's entries say beside the committed results."""

from __future__ import annotations

import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import OURS
from benchmarks.units import UNIT

Entry = Mapping[str, Any]
Committed = Mapping[tuple[str, str], float]

WIDTH = 80
NAME_WIDTH = 30
RESULTS = Path(__file__).with_name("results")
INSTALL_RIVALS = "pip install --no-deps -r benchmarks/rivals.txt"
YARDSTICKS = ("triad", OURS, UNIT)  # what is no rival, and stands beside ours to compare with


def committed() -> dict[tuple[str, str], float]:
    """Ratios other / ours of the committed results, by the names of the benchmark and of the other."""
    found = {}
    for file in sorted(RESULTS.glob("*.json")):
        for entry in json.loads(file.read_text()).get("benchmarks", []):
            for other, ratio in entry["extra_info"].get("ratios", {}).items():
                found[entry["name"], other] = ratio
    return found


def title(entry: Entry) -> str:
    """Group, test and parameters of an entry, in words: ``fisher_diagonal: vgg, 64``."""
    name, _, parameters = entry["name"].removeprefix("test_").partition("[")
    words = [p for p in parameters.rstrip("]").split("-") if p not in ("cpu", "cuda", "")]
    group = entry["group"] or name
    own = "" if _letters(name) in _letters(group) else name.replace("_", " ")
    details = " ".join(part for part in (own, " ".join(words)) if part)
    return f"{group}: {details}" if details else group


def _letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as they need to be, the first to the left and the others to the right."""
    every = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[k]) for row in every) for k in range(len(head))]

    def line(row: Sequence[str]) -> str:
        first, *rest = row
        return "  ".join(
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        ).rstrip()

    return [line(every[0]), "-" * min(WIDTH, sum(widths) + 2 * len(widths) - 2), *map(line, every[1:])]


def comparison_lines(entry: Entry, known: Committed) -> list[str]:
    """Ours and its rivals, the fastest first."""
    info = entry["extra_info"]
    seconds, ratios, spread = info["seconds"], info["ratios"], info["spread"]
    passes = f", {1 / ratios[UNIT]:.2f} forward and backward passes" if ratios.get(UNIT) else ""
    lines = [f"{title(entry)}: {duration(seconds[OURS])}{passes}"]
    for other in sorted(ratios, key=lambda name: (name.startswith(YARDSTICKS), ratios[name])):
        if other == UNIT:
            continue
        low, high = spread[other]
        before = known.get((entry["name"], other))
        lines.append(
            f"  {other:<{NAME_WIDTH}} {ratios[other]:>7.2f}x  {f'{low:.2f} to {high:.2f}':<16}"
            f"{'' if before is None else f'{before:.2f}x':>8}  {verdict(other, low, high)}".rstrip()
        )
    return lines


def verdict(other: str, low: float, high: float) -> str:
    """Which side was faster; equal where the middle half of the rounds holds both answers."""
    if other.startswith(YARDSTICKS):
        return "yardstick"
    return "ours" if low > 1 else "rival" if high < 1 else "equal"


def duration(seconds: float) -> str:
    """With the unit that suits it."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def forgetting_lines(entries: Iterable[Entry]) -> list[str]:
    """The tables of methods beside retraining."""
    lines: list[str] = []
    for entry in entries:
        shown = entry["extra_info"].get("table")
        if shown:
            lines += ["", *textwrap.wrap(shown["title"], WIDTH), *table(shown["head"], shown["rows"])]
    return lines


def rival_lines(entries: Iterable[Entry], known: Committed) -> list[str]:
    """All comparisons of speed."""
    compared = [entry for entry in entries if "spread" in entry["extra_info"]]
    if not compared:
        return []
    head = "  " + f"{'rival':<{NAME_WIDTH}} {'time/ours':>8}  {'middle half':<16}{'committed':>8}  faster"
    intro = (
        "Ours against every other way. time/ours: ratio of medians, above 1 where ours is faster; middle half of the "
        "rounds' ratios; committed: the same in benchmarks/results, from the machine named there."
    )
    lines = ["", *textwrap.wrap(intro, WIDTH), "", head]
    for entry in compared:
        lines += comparison_lines(entry, known)
    return lines


def claim_lines(entries: Iterable[Entry]) -> list[str]:
    """Claims that this run does not bear out."""
    claims = [(title(e), claim) for e in entries for claim in e["extra_info"].get("claims", [])]
    unmet = [f"{name}: {claim['text']}" for name, claim in claims if not claim["met"]]
    if not claims:
        return []
    lines = ["", f"Claims met: {len(claims) - len(unmet)} of {len(claims)}" + (". Not met here:" if unmet else ".")]
    return lines + [line for text in unmet for line in _item(text)]


def missing_lines(entries: Iterable[Entry], not_run: Mapping[str, Sequence[str]], left_out: int) -> list[str]:
    """Rows that are missing, and what brings them.

    Args:
        entries: of the benchmarks that ran.
        not_run: titles of benchmarks that were skipped, by the reason.
        left_out: benchmarks that only ``--all`` runs.
    """
    rivals: dict[str, list[str]] = defaultdict(list)  # benchmarks that lack them
    for entry in entries:
        refused = entry["extra_info"].get("refused", {})
        libraries = {
            rival.partition(",")[0]: None
            for rival, reason in refused.items()
            if reason.startswith(("ModuleNotFoundError", "ImportError"))
        }
        for library in libraries:
            rivals[library].append(title(entry))
    lines: list[str] = []
    if rivals:
        lines += ["", "Rows that are missing, as these libraries are not installed:"]
        for rival, where in rivals.items():
            lines += _item(f"{rival}, for {'; '.join(where)}")
        lines += _item(f"To bring them: {INSTALL_RIVALS}")
    for reason, names in not_run.items():
        lines += ["", *textwrap.wrap(f"Not run: {reason}", WIDTH), *_item("; ".join(names))]
    if left_out:
        lines += ["", f"{left_out} more: pytest benchmarks --all"]
    return lines


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def report(
    entries: Sequence[Entry], known: Committed, not_run: Mapping[str, Sequence[str]], left_out: int
) -> list[str]:
    """The whole summary."""
    lines = [
        *forgetting_lines(entries),
        *rival_lines(entries, known),
        *claim_lines(entries),
        *missing_lines(entries, not_run, left_out),
    ]
    return lines[1:]  # each part begins with an empty line
