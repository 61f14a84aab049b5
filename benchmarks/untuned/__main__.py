"""Methods with nothing tuned, beside retraining.

python -m benchmarks.untuned [--cells NAME ...] [--methods NAME ...] [--seeds N] [--store DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.result_file import write_result
from benchmarks.untuned.cells import CELLS
from benchmarks.untuned.rows import cases_of
from benchmarks.untuned.sources import Sources
from benchmarks.untuned.study import MAKERS, methods, run, summary
from unlearnx.experiments.report import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=list(MAKERS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path, help="folder of the trained models")
    parser.add_argument("--out", type=Path, help="write the rows and their summary to this JSON file")
    given = parser.parse_args()
    sources = Sources() if given.store is None else Sources(store=given.store)
    rows = list(run(given.cells, given.seeds, methods(given.methods), sources, lambda line: print(line, flush=True)))
    found = summary(rows)
    print(json.dumps(found, indent=1))
    if given.out is not None:
        write_result(given.out, {**found, "cases": cases_of(rows), "environment": environment()})


if __name__ == "__main__":
    main()
