"""LiSSA, conjugate gradients, Nystrom's preconditioner, EK-FAC and K-FADE at one damping, beside retraining.

python -m benchmarks.solvers [--studies NAME ...] [--ways NAME ...] [--seeds N] [--store DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.result_file import write_result
from benchmarks.solvers.cases import CASES
from benchmarks.solvers.study import CURVATURE_SAMPLES, DAMPING, MOST_PRODUCTS, NAMES, run, summary
from benchmarks.untuned.sources import Sources
from unlearnx.experiments.report import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument("--ways", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, help="folder of the trained models")
    parser.add_argument("--out", type=Path, help="write rows and medians to this JSON file, beside its other studies'")
    given = parser.parse_args()
    sources = Sources() if given.store is None else Sources(store=given.store)
    rows = [] if given.out is None or not given.out.exists() else json.loads(given.out.read_text())["rows"]
    rows = [row for row in rows if row["study"] not in given.studies]
    for row in run(given.studies, given.seeds, given.ways, sources, lambda line: print(line, flush=True)):
        rows.append(row)
        if given.out is not None:
            write_result(given.out, result(rows))
    print(json.dumps(summary(rows), indent=1))


def result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of the JSON file."""
    about = {"damping": DAMPING, "curvature_samples": CURVATURE_SAMPLES, "most_products": MOST_PRODUCTS}
    return {**about, "summary": summary(rows), "rows": rows, "environment": environment()}


if __name__ == "__main__":
    main()
