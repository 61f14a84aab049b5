"""SISA on the embedded digits: a stream of removals, one at a time, against training anew."""

import time
from dataclasses import replace

import pytest
import torch

from unlearnx.data import load_digits
from unlearnx.methods import SISA
from unlearnx.metrics import accuracy
from unlearnx.models import digits_cnn

REMOVALS = 30


def monolith(data, training):
    """One model of all points: the seconds of its training, and the model."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model = digits_cnn()
    training.run(model.train(), data)
    return time.perf_counter() - start, model.eval()


@pytest.mark.benchmark(group="sisa")
def test_stream_of_removals(benchmark, claim, tmp_path):
    """Training anew is timed before and after the stream, on what is then left."""
    digits = load_digits()
    x, y, test = digits.train_x, digits.train_y, (digits.test_x, digits.test_y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:REMOVALS].tolist()
    sisa = SISA(digits_cnn, tmp_path / "sisa", shards=10, slices=5)
    fits = [sisa.fit((x, y)).seconds]
    alone = [monolith((x, y), sisa.training)[0]]
    fitted = (sisa.predict(test[0]) == test[1]).double().mean().item()

    outcomes = benchmark.pedantic(lambda: [sisa.remove([index]) for index in order], rounds=1)

    stays = torch.ones(len(x), dtype=torch.bool)
    stays[order] = False
    scratch = replace(sisa, folder=tmp_path / "scratch")
    fits.append(scratch.fit((x[stays], y[stays])).seconds)
    seconds, model = monolith((x[stays], y[stays]), sisa.training)
    alone.append(seconds)
    assert torch.equal(sisa.probabilities(test[0]), scratch.probabilities(test[0]))

    costs = torch.tensor([outcome.seconds for outcome in outcomes], dtype=torch.float64)
    mean = costs.mean().item()
    facts = {
        "removals": REMOVALS,
        "seconds": {
            "removal, mean": mean,
            "removal, worst": costs.max().item(),
            "training SISA": sum(fits) / 2,
            "training one model": sum(alone) / 2,
        },
        "cheaper than training SISA": sum(fits) / 2 / mean,
        "cheaper than training one model": sum(alone) / 2 / mean,
        "cheaper in samples": 1 / (sum(outcome.share for outcome in outcomes) / REMOVALS),
        "test accuracy": {
            "SISA": fitted,
            "SISA after the removals": (sisa.predict(test[0]) == test[1]).double().mean().item(),
            "one model": accuracy(model, test),
        },
    }
    benchmark.extra_info.update(facts)
    for other in ("training SISA", "training one model"):
        claim(facts[f"cheaper than {other}"] >= 10, f"a removal takes a tenth of {other} or less")
