"""How well `metrics.unseen_level` knows what retraining would give, on the cells of `benchmarks.untuned` and two more.

    python -m benchmarks.unseen_level [--cells NAME...] [--seeds N] [--out FILE]

The truth is what a model does that was trained without the forget set, from another initialisation. Cells need
UNLEARNX_DATA, UNLEARNX_CIFAR and UNLEARNX_MODELS; those whose data or models are not at hand are left out. Models are
trained once and kept: the first run takes three minutes on one core more than the later ones, which take two, and ten
with the networks of CIFAR-10.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.result_file import write_result
from benchmarks.untuned import CELLS, Case, Cell, Sources, at_hand
from benchmarks.untuned.cells import CNN, digits, drawn
from unlearnx._data import Data
from unlearnx.metrics import UnseenLevel, unseen_level
from unlearnx.metrics.readings import HIT, LOSS, PROBABILITY, Reader

MEASURES = {"accuracy": HIT, "confidence": PROBABILITY, "loss": LOSS}
GIVEN = ("held-out data", "nothing")


def _half_of_two_classes(sources: Sources, seed: int) -> Case:
    data, held, test = digits(seed)
    two = ((data[1] == 3) | (data[1] == 8)).nonzero().flatten()
    return CNN.case(sources, data, two[drawn(len(two), len(two) // 2, seed)], held, test, seed)


def _odd_samples(sources: Sources, seed: int) -> Case:
    (x, y), held, test = digits(seed)
    forget, x = drawn(len(y), 40, seed), x.clone()
    moved = x[forget].roll(2, 3)
    x[forget] = moved + 0.8 * torch.rand(moved.shape, generator=torch.Generator().manual_seed(seed))
    return CNN.case(sources, (x, y), forget, held, test, seed)


HARD = (
    Cell("cnn-two", "CNN on digits, half of two classes", 0.98, 1.0, (0, 1, 2), _half_of_two_classes),
    Cell("cnn-odd", "CNN on digits, 40 samples moved and under noise", 0.95, 0.9, (0, 1, 2), _odd_samples),
)
"""Forget sets that are unlike what stays, which the study of methods leaves out: no estimate is near for sure."""


def truth(case: Case) -> dict[str, float | None]:
    """What the retrained model does; a class is never given where there is none."""
    if case.retrained is None:
        return {"accuracy": 0.0, "confidence": None, "loss": None}
    reading = Reader(None, None, 0).read(case.retrained, case.unseen, 2000)
    assert reading is not None
    return {name: float(reading.of_labels[row].mean()) for name, row in MEASURES.items()}


def estimated(level: UnseenLevel) -> dict[str, Any]:
    return {name: None if found is None else vars(found) for name, found in ((n, getattr(level, n)) for n in MEASURES)}


def rows(cells: list[Cell], seeds: int, sources: Sources) -> Iterator[dict[str, Any]]:
    for cell in cells:
        for seed, case in at_hand(cell.name, cell.seeds[:seeds], partial(cell.build, sources=sources), print):
            expected = truth(case)
            references: tuple[Data | None, ...] = (case.held, None)
            for given, reference in zip(GIVEN, references, strict=True):
                start = time.process_time()
                level = unseen_level(case.model, case.request, reference)
                seconds = time.process_time() - start
                about = {
                    "cell": cell.name,
                    "what": cell.what,
                    "seed": seed,
                    "class": cell.is_class,
                    "hard": cell in HARD,
                    "given": given,
                }
                row = {**about, "retrained": expected, "unseen": estimated(level), "cpu_seconds": round(seconds, 2)}
                print(described(row), flush=True)
                yield row


def described(row: dict[str, Any]) -> str:
    level, expected = row["unseen"]["accuracy"], row["retrained"]["accuracy"]
    said = "unknown" if level is None else f"{level['estimate']:.1%} ({level['low']:.1%} to {level['high']:.1%})"
    return f"{row['cell']}, seed {row['seed']}, {row['given']}: retrained {expected:.1%}, estimate {said}"


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every measure, with and without held-out data, for classes, samples and the hard ones: errors, coverage."""
    kinds = {
        "class": lambda r: r["class"],
        "samples": lambda r: not (r["class"] or r["hard"]),
        "hard": lambda r: r["hard"],
    }
    lines = []
    for given in GIVEN:
        for kind, belongs in kinds.items():
            for name in MEASURES:
                pairs = [
                    (r["unseen"][name], r["retrained"][name])
                    for r in found
                    if r["given"] == given and belongs(r) and r["unseen"][name] and r["retrained"][name] is not None
                ]
                if pairs:
                    lines.append({"given": given, "kind": kind, "measure": name, **_errors(pairs)})
    return lines


def _errors(pairs: list[tuple[dict[str, float], float]]) -> dict[str, float]:
    return {
        "cases": len(pairs),
        "mean_error": mean(abs(level["estimate"] - true) for level, true in pairs),
        "right": sum(level["low"] - 1e-9 <= true <= level["high"] + 1e-9 for level, true in pairs),
        "mean_width": mean(level["high"] - level["low"] for level, _ in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {cell.name: cell for cell in (*CELLS.values(), *HARD)}
    parser.add_argument("--cells", nargs="+", choices=known, default=list(known), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the cases to this JSON file")
    given = parser.parse_args()
    found = list(rows([known[name] for name in given.cells], given.seeds, Sources()))
    lines = summary(found)
    for line in lines:
        print(
            f"{line['given']}, {line['kind']}, {line['measure']}: mean absolute error {line['mean_error']:.3f}, "
            f"interval right in {line['right']} of {line['cases']}, mean width {line['mean_width']:.3f}"
        )
    if given.out is not None:
        write_result(given.out, {"summary": lines, "cases": found})


if __name__ == "__main__":
    main()
