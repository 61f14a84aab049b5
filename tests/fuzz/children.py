"""Batches of random calls in child processes: one that dies or hangs is a failure like a wrong number."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_batch(module: str, seed: int, calls: int, *, timeout: float = 300) -> Counter[str]:
    """What became of so many calls of ``python -m module seed calls``: counts by kind of end.

    The child prints a line of JSON before each call, so that what it was doing when it died is known, and at the end
    its counts and what it found wrong.
    """
    command = [sys.executable, "-m", module, str(seed), str(calls)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        last = (error.stdout or b"").decode().splitlines()[-1:]
        raise AssertionError(f"{module} {seed} {calls}: no end after {timeout} s, at {last}") from error
    lines = done.stdout.splitlines()
    end = f"{module} {seed} {calls}: exit status {done.returncode} at {lines[-1:]}: {done.stderr[-800:]}"
    assert done.returncode == 0, end
    found = json.loads(lines[-1])
    assert not found["wrong"], "\n".join(f"{module} seed {seed}: {text}" for text in found["wrong"])
    return Counter(found["counts"])
