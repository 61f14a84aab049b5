"""Features forgotten by Newton steps against retraining, and K requests together against one by one.

On the malware features of the published study (addresses removed, lambda 1, unit rows), from the folder that
UNLEARNX_DATA names. Retraining is SciPy's L-BFGS, stopped where the gradient's norm falls to 1e-5.
"""

import os
import statistics
import time
from pathlib import Path

import pytest
import torch

from unlearnx.data import load_drebin
from unlearnx.experiments.features import NEWTON_TOLERANCE, Regression
from unlearnx.methods import CertifiedRemoval

DRAWS = 20


@pytest.fixture(scope="module")
def malware():
    if "UNLEARNX_DATA" not in os.environ:
        pytest.skip("UNLEARNX_DATA is not set: it names the folder with drebin-malware.npz")
    table = load_drebin(Path(os.environ["UNLEARNX_DATA"]))
    model = CertifiedRemoval(certified=False, tolerance=NEWTON_TOLERANCE).fit(table.train_x, table.train_y)
    return table, model


def requests(table, count):
    addresses = torch.tensor(list(table.sensitive.values()))[:, 0]
    generator = torch.Generator().manual_seed(count)
    drawn = [addresses[torch.randperm(len(addresses), generator=generator)[:count]] for _ in range(DRAWS)]
    return [columns.tolist() for columns in drawn]


def seconds(call):
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


@pytest.mark.benchmark(group="certified")
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("count", [10, 50, 100])
def test_features(benchmark, malware, count, steps):
    table, model = malware
    chosen = requests(table, count)
    for warm in (chosen[:1], chosen):
        model.many_features(warm, steps=steps)
    times = {"one step" if steps == 1 else f"{steps} steps": [], "L-BFGS": []}
    ours, theirs = times.values()
    residuals, untouched = [], []
    for columns in chosen:
        regression = Regression(table.train_x, table.train_y, model.lam, columns)
        spent, (removal,) = seconds(lambda columns=columns: model.many_features([columns], steps=steps))
        ours.append(spent)
        spent, retrained = seconds(regression.retrain)
        theirs.append(spent)
        assert regression.residual(retrained) <= 1e-5
        residuals.append(regression.residual(removal.theta[:, 0].numpy()))
        untouched.append(regression.residual(model.theta[:, 0].numpy() * regression.kept))
    alone = [sum(ours)]
    joint = []
    for _ in range(3):
        joint.append(seconds(lambda: model.many_features(chosen, steps=steps))[0])
        alone.append(seconds(lambda: [model.many_features([columns], steps=steps) for columns in chosen])[0])
    together = benchmark.pedantic(lambda: model.many_features(chosen, steps=steps), rounds=3)
    joint_residuals = [
        Regression(table.train_x, table.train_y, model.lam, columns).residual(removal.theta[:, 0].numpy())
        for columns, removal in zip(chosen, together, strict=True)
    ]
    medians = {name: statistics.median(t) for name, t in times.items()}
    info = {
        "draws": DRAWS,
        "seconds": medians,
        "share_of_retraining": statistics.median(ours) / statistics.median(theirs),
        "residual_before": statistics.fmean(untouched),
        "residual": statistics.fmean(residuals),
        "largest_residual": max(residuals),
        "seconds_one_by_one": statistics.median(alone),
        "seconds_together": statistics.median(joint),
        "share_together": statistics.median(joint) / statistics.median(alone),
        "residual_together": statistics.fmean(joint_residuals),
    }
    benchmark.extra_info.update(info)


@pytest.mark.benchmark(group="certified")
def test_rows(benchmark, malware):
    """A certified removal of one row against a training."""
    table, _ = malware
    model = CertifiedRemoval(sigma=10.0, epsilon=1.0, seed=0).fit(table.train_x, table.train_y)
    training = model.ledger[0].seconds
    rows = iter(range(1000))
    benchmark.pedantic(lambda: model.remove([next(rows)]), rounds=15, warmup_rounds=2)
    steps = [entry for entry in model.ledger if entry.kind == "rows"]
    spent = statistics.median(entry.seconds for entry in steps)
    info = {
        "seconds": {"one row": spent, "training": training},
        "share_of_training": spent / training,
        "budget": model.budget,
        "bound_of_a_row": statistics.fmean(entry.remainder for entry in steps),
        "published_bound_of_a_row": statistics.fmean(entry.published for entry in steps),
    }
    benchmark.extra_info.update(info)
