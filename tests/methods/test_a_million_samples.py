"""A dataset that would take 12 GB in memory goes through methods in less than 1 GiB."""

import json
import resource
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from unlearnx import Request
from unlearnx.methods import SSD, FineTune, FirstOrder

N = 1_000_000
METHODS = {
    "ssd": SSD(params="last:2", batch_size=1000),
    "first-order": FirstOrder(steps=1, batch_size=1000),
    "fine-tune": FineTune(epochs=1, batch_size=1000, max_increase=9.0),
}


class MadeUp(Dataset):
    """Images (3, 32, 32) of ten classes, made when they are read."""

    def __init__(self, n):
        self.n = n
        generator = torch.Generator().manual_seed(0)
        self.looks = torch.randn(10, 3, 32, 32, generator=generator)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.looks[i % 10] * (1 + i % 101 / 100), i % 10


def peak():
    """Most memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def network():
    torch.manual_seed(0)
    pooled = [nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*pooled, nn.Linear(16, 10)).eval()


def run_apart(name, n):
    """A method's run in a process of its own."""
    command = [sys.executable, __file__, name, str(n)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3000)
    result = json.loads(found.stdout)
    print(result)
    assert result["loss_before"] > 0
    return result["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_memory_does_not_grow_with_the_data(name):
    assert run_apart(name, N) < 2**30


def test_memory_between_what_is_kept_is_given_back():
    assert run_apart("ssd", 60_000) < 2**28  # of 720 MB that are read; labels and features are kept


def main(name, n):
    """Run a method, and print what it took beyond what was there before."""
    torch.set_num_threads(1)
    forget = range(0, n // 2, 50)  # a tenth of one class
    model, request = network(), Request.remove(MadeUp(n), forget)
    model(torch.zeros(2, 3, 32, 32))
    before, start = peak(), time.perf_counter()
    outcome = METHODS[name](model, request)
    took = {"bytes": peak() - before, "seconds": round(time.perf_counter() - start)}
    print(json.dumps({**took, "applied": outcome.applied, "loss_before": outcome.loss_before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
