"""The table of a search for arguments, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnx.experiments.report.frame import terminal_table

if TYPE_CHECKING:
    from rich.table import Table


def table(found: dict[str, Any]) -> Table:
    """The gap of every method before and after, with the best values."""
    shown = terminal_table(f"{found['experiment']}, {found['trials']} trials", "method", "gap\nbefore", "%\nafter")
    for name, entry in sorted(found["methods"].items(), key=lambda item: item[1]["gap_after"]):
        best = min(entry["tried"], key=lambda row: row["gap"])["values"]
        values = ", ".join(f"{key}={value:.3g}" for key, value in best.items())
        gaps = (f"{100 * entry[key]:.2f}" for key in ("gap_before", "gap_after"))
        shown.add_row(f"{name}\n({values})" if values else name, *gaps)
    return shown
