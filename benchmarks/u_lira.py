"""U-LiRA on digits: what an attacker who knows a sample finds of what each method was to remove.

    python -m benchmarks.u_lira [--methods NAME ...] [--models N] [--out FILE]

Networks are trained on 300 digits and some of 200 candidates, and made to forget these. Each takes its turn as the
attacked one, with the others as shadows. Beside it stands an attack on the population, of the same confidences without
shadows: does a removed sample look more like training data than one that the network never saw? Both are areas under
the ROC curve; 0.5 finds nothing. ``untouched`` forgets nothing, and ``retrained`` is trained anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.result_file import write_result
from unlearnx.data import load_digits
from unlearnx.experiments.comparison import interval
from unlearnx.experiments.report import environment
from unlearnx.methods import METHODS, Request, Retrain
from unlearnx.metrics import u_lira, unlearned_shadows
from unlearnx.metrics.lira import auc_of
from unlearnx.models import Training, digits_cnn

SAMPLES, CANDIDATES, MODELS = 500, 200, 16
TRAINING = Training(15, lr=2e-3)
LEFT_OUT = ("auto", "idk", "retrain")  # `auto` is one of the others each time; `idk` takes corrections
UNTOUCHED, RETRAINED = "untouched", "retrained"

Unlearn = Callable[[nn.Module, Request], Any]


class Trained:
    """Networks that are trained once, and unlearned by each method from the same start."""

    def __init__(self) -> None:
        self._known: dict[int, dict[str, Tensor]] = {}

    def __call__(self, dataset: Any, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = digits_cnn()
        if seed not in self._known:
            TRAINING.run(model.train(), dataset)
            self._known[seed] = {name: t.clone() for name, t in model.state_dict().items()}
        model.load_state_dict(self._known[seed])
        return model.eval()


def unlearners(names: Iterable[str]) -> dict[str, Unlearn]:
    """What makes a model forget, by name; the untouched and the retrained model among them."""
    chosen: dict[str, Unlearn] = {UNTOUCHED: lambda model, request: model}
    chosen[RETRAINED] = Retrain(TRAINING.epochs, lr=TRAINING.lr, batch_size=TRAINING.batch_size)
    return {**chosen, **{name: METHODS[name]() for name in names}}


def measured(train: Trained, unlearn: Unlearn, models: int) -> dict[str, Any]:
    """Mean areas over the attacked models with their 95 % intervals, and seconds."""
    s, start = load_digits(), time.perf_counter()
    data = s.train_x[:SAMPLES], s.train_y[:SAMPLES]
    confidence, unlearned = unlearned_shadows(train, unlearn, data, range(CANDIDATES), models=models)
    seconds = time.perf_counter() - start
    by_sample, by_population = [], []
    for k in range(models):
        others = torch.arange(models) != k
        found = u_lira(confidence[k], confidence[others], unlearned[others], unlearned[k], bootstrap=1)
        by_sample.append(found.auc)
        by_population.append(auc_of(confidence[k], unlearned[k], 1, 0)[0])
    return {"u_lira": interval(by_sample, 1.0), "population": interval(by_population, 1.0), "seconds": seconds}


def main() -> None:
    """Measure the methods and say what is found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--methods", nargs="+", metavar="NAME", default=[n for n in METHODS if n not in LEFT_OUT])
    parser.add_argument("--models", type=int, default=MODELS)
    parser.add_argument("--out", type=Path, help="write the areas to this JSON file")
    given = parser.parse_args()
    train, rows = Trained(), {}
    for name, unlearn in unlearners(given.methods).items():
        try:
            rows[name] = measured(train, unlearn, given.models)
        except ValueError as error:
            print(f"{name:20} refused: {error}", flush=True)
            continue
        shown = [f"{title} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for title, v in _areas(rows[name])]
        print(f"{name:20} {'  '.join(shown)}  {rows[name]['seconds']:.1f} s", flush=True)
    if given.out is not None:
        content = {"environment": environment(), "models": given.models, "rows": rows}
        write_result(given.out, content)


def _areas(row: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    return [("U-LiRA", row["u_lira"]), ("population", row["population"])]


if __name__ == "__main__":
    main()
