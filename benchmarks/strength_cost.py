"""Methods that find their strength beside the same with that strength given: what the search costs.

    python -m benchmarks.strength_cost [--cells NAME ...] [--rounds N] [--out FILE]

The cells are those of ``python -m benchmarks.untuned``. The two take turns; seconds are the outcome's own. Where the
strength is to be found they include the estimate of what a model would do that never saw the samples. A method that
trains is given the epochs that take as many gradient evaluations.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.result_file import write_result
from benchmarks.untuned import CELLS, at_hand
from benchmarks.untuned.cells import Case
from unlearnx.methods import (
    KFADE,
    SSD,
    FineTune,
    FisherMasking,
    Method,
    NegGrad,
    Outcome,
    RandomPerturbation,
    SalUn,
    StochasticTeacher,
)

TOYS = ("lstm-class", "resnet-class", "cnn-class")
AIM = 2.0  # times the seconds with the strength given
METHODS = {
    type(method).__name__: method
    for method in (
        *(SSD(), FisherMasking(), RandomPerturbation(), KFADE()),
        *(FineTune(), NegGrad(), SalUn(), StochasticTeacher()),
    )
}


def with_strength(method: Method, case: Case, found: Outcome) -> Method:
    """The method with the strength that it found; one that trains with as many gradient evaluations as it took."""
    name = method._strength
    if name in found.info:
        return replace(method, **{name: found.info[name]})
    one = replace(method, epochs=1)(case.model, case.request).gradient_evaluations
    return replace(method, epochs=max(1, round(found.gradient_evaluations / one)))


def measured(case: Case, name: str, rounds: int) -> dict[str, Any]:
    """Median seconds of the method by itself, and with the strength given that it found."""
    method = replace(METHODS[name], loss_fn=case.loss_fn)
    first = method(case.model, case.request)
    if not first.applied or "narrowed_to" in first.info:
        return {"left_out": first.reason or "it changed the last layer alone, after a second search"}
    knows = with_strength(method, case, first)
    own, given = [first.seconds], []
    for turn in range(rounds):
        given.append(knows(case.model, case.request).seconds)
        if turn < rounds - 1:
            own.append(method(case.model, case.request).seconds)
    return {"seconds": median(own), "given": median(given), "times": median(own) / median(given)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(TOYS), choices=list(CELLS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file")
    given = parser.parse_args()
    rows = []
    for name in given.cells:
        for _, case in at_hand(name, (0,), CELLS[name].build, print):
            for method in given.methods:
                row = {"cell": name, "what": CELLS[name].what, "method": method, **measured(case, method, given.rounds)}
                rows.append(row)
                said = row.get("left_out") or (
                    f"{row['seconds']:.2f} s, {row['given']:.2f} s with the strength given: {row['times']:.2f} times"
                )
                print(f"{name}, {method}: {said}", flush=True)
    if given.out is not None:
        write_result(given.out, {"aim": AIM, "rows": rows})


if __name__ == "__main__":
    main()
