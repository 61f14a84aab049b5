"""Which scores tell what a model trained on a part of the data would do, and which find wrong labels.

python -m benchmarks.lds [--data NAME ...] [--subsets N] [--repeats N] [--out FILE]

LDS is the linear datamodelling score (:func:`unlearnx.metrics.lds`), the mean over the queries. AUROC is that of
self-influence for labels of which a tenth was changed at random. Seconds are those of the processor. kronfluence takes
part where it is installed (see rivals.txt).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.result_file import write_result
from benchmarks.untuned.cells import drawn
from benchmarks.untuned.sources import Sources
from unlearnx.attribution import ekfac_influence, ekfac_self_influence
from unlearnx.curvature import EKFAC, CurvatureOperator, LiSSA, per_sample_grad_difference
from unlearnx.data import load_digits
from unlearnx.experiments.report import environment
from unlearnx.experiments.runs import untrained
from unlearnx.metrics import lds, losses_of_subsets
from unlearnx.models import Training

Pair = tuple[Tensor, Tensor]

TRAIN, QUERIES = 600, 100
PROJECTED = 256  # dimensions of TRAK-like projections
WRONG = 0.1  # share of the labels
TRAINING = Training(40, lr=1e-2, batch_size=64, weight_decay=1e-4)
CPU = torch.device("cpu")


def digits(sources: Sources) -> tuple[Pair, Pair]:
    """Images of 8 x 8 pixels."""
    splits = load_digits(test_share=0.5)
    return (splits.train_x.flatten(1), splits.train_y), (splits.test_x.flatten(1), splits.test_y)


def mnist(sources: Sources) -> tuple[Pair, Pair]:
    """Images of 28 x 28 pixels."""
    splits = sources.mnist()
    return (splits.train_x.flatten(1), splits.train_y), (splits.test_x.flatten(1), splits.test_y)


DATA: dict[str, Callable[[Sources], tuple[Pair, Pair]]] = {"digits": digits, "mnist": mnist}


def perceptron(inputs: int) -> Callable[[], nn.Module]:
    """Two hidden layers."""
    return lambda: nn.Sequential(
        *(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


class Trainer:
    """Trains networks on parts of the data, each from another initialisation."""

    def __init__(self, inputs: int):
        self._network, self._seed = perceptron(inputs), 0

    def __call__(self, data: Any) -> nn.Module:
        self._seed += 1
        model = untrained(self._network, seed=self._seed, device=CPU)
        TRAINING.run(model.train(), data)
        return model.eval()


def gradients(model: nn.Module, data: Pair) -> Tensor:
    """The gradient of every sample's loss, (N, P)."""
    found = per_sample_grad_difference(model, F.cross_entropy, data)
    return torch.cat([t.flatten(1) for t in found.values()], 1)


def ekfac(model: nn.Module, train: Pair, queries: Pair) -> Tensor:
    """With one label drawn for each sample."""
    return ekfac_influence(model, F.cross_entropy, train, queries)


def exact_ekfac(model: nn.Module, train: Pair, queries: Pair) -> Tensor:
    """With the expectation over all labels."""
    factors = EKFAC(fisher_type="exact").fit(model, F.cross_entropy, train, diagonal=False)
    return ekfac_influence(model, F.cross_entropy, train, queries, factors=factors)


def tracin(model: nn.Module, train: Pair, queries: Pair) -> Tensor:
    """Of the last checkpoint."""
    return -gradients(model, queries) @ gradients(model, train).T


def trak(model: nn.Module, train: Pair, queries: Pair) -> Tensor:
    """Random projections of the gradients, and the inverse of their products."""
    own = gradients(model, train)
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(own.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
    own, asked = own @ projection, gradients(model, queries) @ projection
    gram = own.T @ own
    gram.diagonal().add_(1e-3 * float(gram.diagonal().mean()))
    return -asked @ torch.linalg.solve(gram, own.T)


def lissa(model: nn.Module, train: Pair, queries: Pair) -> Tensor:
    """The inverse Gauss-Newton matrix applied to every query, at a hundredth of its largest eigenvalue."""
    top = CurvatureOperator(model, F.cross_entropy, train).top_eigenvalue(generator=torch.Generator().manual_seed(0))
    operator = CurvatureOperator(model, F.cross_entropy, train, damping=1e-2 * top)
    asked = per_sample_grad_difference(model, F.cross_entropy, queries)
    solved = LiSSA(damping=0.0, batch_size=None, recursion_depth=100).solve(operator, asked).x
    return -torch.cat([t.flatten(1) for t in solved.values()], 1) @ gradients(model, train).T


def kronfluence(model: nn.Module, train: Pair, queries: Pair) -> Tensor:
    """EK-FAC of that library, with its heuristic for the damping, which is ours."""
    from kronfluence.arguments import FactorArguments, ScoreArguments

    from benchmarks.kronfluence_task import analyzer, prepared

    sets = [torch.utils.data.TensorDataset(*pair) for pair in (train, queries)]
    with tempfile.TemporaryDirectory() as folder:
        own = analyzer(*prepared(model), folder)
        own.fit_all_factors("f", sets[0], per_device_batch_size=200, factor_args=FactorArguments("ekfac"))
        own.compute_pairwise_scores(
            *("s", "f", sets[1], sets[0]),
            per_device_query_batch_size=100,
            per_device_train_batch_size=200,
            score_args=ScoreArguments(damping_factor=None),
        )
        return -own.load_pairwise_scores("s")["all_modules"].float()


WAYS = {
    "EK-FAC, all labels": exact_ekfac,
    "EK-FAC": ekfac,
    "kronfluence": kronfluence,
    "LiSSA": lissa,
    "TracIn": tracin,
    "TRAK-like": trak,
}


def auroc(scores: Tensor, wrong: Tensor) -> float:
    """How often a wrong label has a higher score than a right one."""
    order = scores.argsort().argsort().double() + 1
    k, n = int(wrong.sum()), len(wrong)
    return (float(order[wrong].sum()) - k * (k + 1) / 2) / (k * (n - k))


def self_scores(model: nn.Module, train: Pair) -> dict[str, Tensor]:
    """Of every training sample, how much it lowers its own loss."""
    own = gradients(model, train)
    with torch.no_grad():
        losses = F.cross_entropy(model(train[0]), train[1], reduction="none")
    return {
        "EK-FAC": ekfac_self_influence(model, F.cross_entropy, train),
        "TracIn": own.square().sum(1),
        "TRAK-like": -trak(model, train, train).diagonal(),
        "loss": losses,
    }


def study(name: str, sources: Sources, subsets: int, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """LDS and AUROC of every way on one set of data."""
    (x, y), (query_x, query_y) = DATA[name](sources)
    chosen, asked = drawn(len(y), TRAIN, 0), drawn(len(query_y), QUERIES, 1)
    train, queries = (x[chosen], y[chosen]), (query_x[asked], query_y[asked])
    trainer = Trainer(x.shape[1])
    generator = torch.Generator().manual_seed(0)
    masks, losses = losses_of_subsets(
        trainer, F.cross_entropy, train, queries, subsets=subsets, repeats=repeats, generator=generator
    )
    model = trainer(train)
    found: dict[str, Any] = {"data": name, "lds": {}, "seconds": {}}
    for way, scores_of in WAYS.items():
        start = process_time()
        try:
            scores = scores_of(model, train, queries)
        except ImportError:
            say(f"{name}: {way} is not installed")
            continue
        found["seconds"][way] = process_time() - start
        found["lds"][way] = float(lds(scores, masks, losses).nanmean())
        say(f"{name}, {way}: LDS {found['lds'][way]:.3f}, {found['seconds'][way]:.2f} s")
    wrong = torch.zeros(TRAIN, dtype=torch.bool)
    wrong[drawn(TRAIN, round(WRONG * TRAIN), 2)] = True
    shift = torch.randint(1, 10, (TRAIN,), generator=torch.Generator().manual_seed(3))
    spoiled = train[0], torch.where(wrong, (train[1] + shift) % 10, train[1])
    found["auroc"] = {way: auroc(scores, wrong) for way, scores in self_scores(trainer(spoiled), spoiled).items()}
    say(f"{name}: AUROC {found['auroc']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA), metavar="NAME")
    parser.add_argument("--subsets", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=2, help="models trained on each subset")
    parser.add_argument("--out", type=Path, help="write the scores to this JSON file")
    given = parser.parse_args()
    found = [] if given.out is None or not given.out.exists() else json.loads(given.out.read_text())["studies"]
    found = [one for one in found if one["data"] not in given.data]
    sizes = {"train": TRAIN, "queries": QUERIES, "subsets": given.subsets, "repeats": given.repeats}
    for name in given.data:
        found.append(study(name, Sources(), given.subsets, given.repeats, lambda line: print(line, flush=True)))
        if given.out is not None:
            write_result(given.out, {**sizes, "studies": found, "environment": environment()})


if __name__ == "__main__":
    main()
