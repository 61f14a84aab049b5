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
FORGET = range(0, N // 2, 50)  # a tenth of one class
METHODS = {
    "ssd": SSD(params="last:2", batch_size=1000),
    "first-order": FirstOrder(steps=1, batch_size=1000),
    "fine-tune": FineTune(epochs=1, batch_size=1000, max_increase=9.0),
}


class MadeUp(Dataset):
    """Images (3, 32, 32) of ten classes, made when they are read."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.looks = torch.randn(10, 3, 32, 32, generator=generator)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.looks[i % 10] * (1 + i % 101 / 100), i % 10


def peak():
    """Most memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def network():
    torch.manual_seed(0)
    pooled = [nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*pooled, nn.Linear(16, 10)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_memory_does_not_grow_with_the_data(name):
    found = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True, timeout=3000)
    result = json.loads(found.stdout)
    print(result)
    assert result["bytes"] < 2**30
    assert result["loss_before"] > 0


def main(name):
    """Run a method, and print what it took beyond what was there before."""
    torch.set_num_threads(1)
    model, request = network(), Request.remove(MadeUp(), FORGET)
    model(torch.zeros(2, 3, 32, 32))
    before, start = peak(), time.perf_counter()
    outcome = METHODS[name](model, request)
    took = {"bytes": peak() - before, "seconds": round(time.perf_counter() - start)}
    print(json.dumps({**took, "applied": outcome.applied, "loss_before": outcome.loss_before}))


if __name__ == "__main__":
    main(sys.argv[1])
