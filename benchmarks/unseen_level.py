"""How well `metrics.unseen_level` knows what retraining would give: digits, three seeds of four kinds of forget sets.

    python benchmarks/unseen_level.py [--out FILE]     about three minutes on one core

The truth is the mean accuracy on the forget set of two networks trained without it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.data import load_digits
from unlearnx.metrics import accuracy, unseen_level

SEEDS, RETRAINED = 3, 2


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def trained(x: Tensor, y: Tensor, seed: int, epochs: int) -> nn.Module:
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model.eval()


def forget_sets(x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Name, numbers of the forget set, and the data that a network is trained on."""
    some = torch.randperm(len(x), generator=generator)
    yield "random tenth", some[:130], x, y
    wrong = y.clone()
    wrong[some[:130]] = (wrong[some[:130]] + torch.randint(1, 10, (130,), generator=generator)) % 10
    yield "mislabelled tenth", some[:130], x, wrong
    two = ((y == 3) | (y == 8)).nonzero().flatten()
    yield "half of two classes", two[torch.randperm(len(two), generator=generator)][: len(two) // 2], x, y
    odd = x.clone()
    moved = odd[some[:40]].roll(2, 3)
    odd[some[:40]] = moved + 0.8 * torch.rand(moved.shape, generator=generator)
    yield "40 odd samples of one user", some[:40], odd, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the cases to this JSON file")
    out = parser.parse_args().out
    digits = load_digits(test_share=0.277)
    held = digits.test_x, digits.test_y
    cases = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(100 + seed)
        for name, forget, x, y in forget_sets(digits.train_x, digits.train_y, generator):
            epochs = 120 if name.startswith("mis") else 40
            stays = torch.ones(len(x), dtype=torch.bool)
            stays[forget] = False
            model = trained(x, y, seed, epochs)
            retrained = [trained(x[stays], y[stays], 10 + 10 * seed + s, epochs) for s in range(RETRAINED)]
            truth = statistics.mean(accuracy(m, (x[forget], y[forget])) for m in retrained)
            for given, reference in (("held-out data", held), ("nothing", None)):
                level = unseen_level(model, Request.remove((x, y), forget), reference).accuracy
                assert level is not None
                case = {"forget": name, "seed": seed, "given": given, "retrained": truth}
                cases.append(case | {"estimate": level.estimate, "low": level.low, "high": level.high})
                print(f"{name}, seed {seed}, {given}: retrained {truth:.1%}, estimate {level.estimate:.1%} ", end="")
                print(f"({level.low:.1%} to {level.high:.1%})", flush=True)
    for given in ("held-out data", "nothing"):
        own = [c for c in cases if c["given"] == given]
        error = statistics.mean(abs(c["estimate"] - c["retrained"]) for c in own)
        held_by = sum(c["low"] - 1e-9 <= c["retrained"] <= c["high"] + 1e-9 for c in own)
        print(f"{given}: mean absolute error {100 * error:.1f} points, interval right in {held_by} of {len(own)} cases")
    if out is not None:
        out.write_text(json.dumps({"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
