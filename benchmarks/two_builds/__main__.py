"""Every op beside itself in another checkout of the project, whose ops are built in place.

    git worktree add ../before COMMIT && (cd ../before && python setup.py build_ext --inplace)
    python -m benchmarks.two_builds ../before [--only TEXT] [--pairs N] [--rounds N] [--out FILE]

Two libraries of the same ops do not load into one process: each checkout has one, and the two take turns. Where memory
lies in a process costs or saves some per cent for as long as it lives, so that several pairs of processes are measured,
one after the other. A ratio is that of the medians of a pair, and the median of those over the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import write_result
from benchmarks.two_builds import calls
from unlearnx.experiments.report import environment

ROOT = Path(__file__).resolve().parents[2]
SIDES = ("before", "after")
SIZES = ("ordinary", "small")
TURN_SECONDS = 0.02  # calls of a turn take so long together, but one at least
PAUSE_SECONDS = 0.01  # after a turn: threads of the other side that wait for work keep their cores busy for a while


class Side:
    """A process that runs the ops of one checkout."""

    def __init__(self, checkout: Path):
        self._process = subprocess.Popen(
            [sys.executable, calls.__file__],
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found, self.build = self._answer()
        if not Path(found).is_relative_to(checkout):
            self.close()
            raise SystemExit(f"{checkout} has no package unlearnx: {found} was imported in its place")

    def ask(self, *order: Any) -> float:
        """What the process answers to an order of calls.py."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with exit status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def in_turns(sides: dict[str, Side], row: str, size: str, rounds: int) -> dict[str, float]:
    """Median seconds of a call, by side."""
    one = min(side.ask("build", row, size) for side in sides.values())
    many = max(1, round(TURN_SECONDS / one))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in SIDES if turn % 2 else reversed(SIDES):
            times[name].append(sides[name].ask("time", many))
            time.sleep(PAUSE_SECONDS)
    return {name: median(found) for name, found in times.items()}


def compared(medians: list[dict[str, float]]) -> dict[str, Any]:
    """Of the medians of every pair: seconds of both sides, and the ratio with its range over the pairs."""
    ratios = sorted(one["after"] / one["before"] for one in medians)
    seconds = {name: median(one[name] for one in medians) for name in SIDES}
    return {**seconds, "ratio": median(ratios), "range": [ratios[0], ratios[-1]]}


def measured(
    checkouts: dict[str, Path], names: list[str], pairs: int, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How both sides were built, and what was found of every row."""
    rows = calls.rows()
    medians: dict[str, dict[str, list[dict[str, float]]]] = {name: {size: [] for size in SIZES} for name in names}
    for pair in range(pairs):
        sides = {name: Side(checkouts[name]) for name in (SIDES if pair % 2 else reversed(SIDES))}
        builds = {name: sides[name].build for name in SIDES}
        for name in names:
            for size in SIZES:
                medians[name][size].append(in_turns(sides, name, size, rounds))
        for side in sides.values():
            side.close()
        say(f"pair {pair + 1} of {pairs}")
    found = [
        {"row": name, "sizes": rows[name].sizes, **{size: compared(medians[name][size]) for size in SIZES}}
        for name in names
    ]
    return builds, found


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    ordinary, small = (row[size] for size in SIZES)
    low, high = ordinary["range"]
    return (
        f"{row['row']:30} {1e3 * ordinary['before']:8.3f} ms, {ordinary['ratio']:.3f} of that ({low:.3f} to {high:.3f})"
        f"    small {1e6 * small['before']:6.1f} us {1e6 * (small['after'] - small['before']):+6.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="root of the other checkout")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose names hold it")
    parser.add_argument("--pairs", type=int, default=5, help="of processes, one after the other")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side, in each pair")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    given = parser.parse_args()
    names = [name for name in calls.rows() if given.only in name]
    checkouts = {"before": given.before.resolve(), "after": ROOT}
    builds, found = measured(checkouts, names, given.pairs, given.rounds, lambda text: print(text, flush=True))
    print(*map(line, found), sep="\n")
    if given.out is not None:
        write_result(given.out, {"builds": builds, "rows": found, "environment": environment()})


if __name__ == "__main__":
    main()
