"""SISA on images: an ensemble of ResNet-9s on CIFAR-10 that forgets exactly, beside one network trained anew.

    python -m benchmarks.sisa_images [--shards N] [--slices N] [--removals N] [--seeds N] [--images N] [--epochs N]
        [--out FILE]

Needs UNLEARNX_CIFAR, the folder of CIFAR-10. All images take the time of two trainings of 14 epochs a seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.result_file import write_result
from benchmarks.untuned import Sources
from unlearnx.data import Splits
from unlearnx.experiments.runs import train
from unlearnx.methods import SISA
from unlearnx.metrics import accuracy
from unlearnx.models import Training, fast_dtype, resnet9

CPU = torch.device("cpu")


def measured(splits: Splits, training: Training, shards: int, slices: int, removals: int, seed: int) -> dict[str, Any]:
    """Accuracies on test images and seconds of one network and of the ensemble, before and after each removal."""
    x, y, test = splits.train_x, splits.train_y, (splits.test_x, splits.test_y)
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:removals].tolist()
    stays = torch.ones(len(y), dtype=torch.bool)
    stays[chosen] = False
    alone, seconds = train(resnet9, training, (x[stays], y[stays]), seed=seed, device=CPU, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        sisa = SISA(resnet9, folder, shards=shards, slices=slices, training=training, seed=seed)
        fitted = sisa.fit((x, y))
        before = _accuracy(sisa, *test)
        outcomes = [sisa.remove([index]) for index in chosen]
        after = _accuracy(sisa, *test)
    return {
        "seed": seed,
        "one network": {"test": accuracy(alone, test), "seconds": seconds},
        "ensemble": {
            "test": before,
            "test after": after,
            "seconds": fitted.seconds,
            "seconds of a removal": mean(outcome.seconds for outcome in outcomes),
            "share of its training": mean(outcome.share for outcome in outcomes),
        },
    }


def _accuracy(sisa: SISA, x: Tensor, y: Tensor) -> float:
    return (sisa.predict(x) == y).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"shards": 5, "slices": 2, "removals": 3, "seeds": 3, "epochs": 14}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--images", type=int, help="the first ones alone")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    asked = parser.parse_args()
    splits = Sources().cifar10()
    part = Splits(
        splits.train_x[: asked.images], splits.train_y[: asked.images], splits.test_x, splits.test_y, splits.classes
    )
    training = Training(asked.epochs, lr=2e-3, autocast=fast_dtype(CPU))
    rows = []
    for seed in range(asked.seeds):
        rows.append(measured(part, training, asked.shards, asked.slices, asked.removals, seed))
        print(json.dumps(rows[-1]), flush=True)
    if asked.out is not None:
        found = {**{key: value for key, value in vars(asked).items() if key != "out"}, "rows": rows}
        write_result(asked.out, found)


if __name__ == "__main__":
    main()
