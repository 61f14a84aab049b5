"""What it costs to find the losses of samples, in shares of a forward and backward pass: of two CNNs.

    python -m benchmarks.loss_check [--rounds N]

Losses of torch and of unlearnx.losses are known; a function of one's own that returns their mean is split over the
samples, and its value compared with that of the parts. Both sides take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx import losses
from unlearnx._losses import SampleLoss
from unlearnx.models import digits_cnn, vgg_cifar10

NETWORKS = {  # and the shape of a batch
    "CNN on digits, 256 a batch": (digits_cnn, (256, 1, 8, 8)),
    "VGG on CIFAR-10, 32 a batch": (vgg_cifar10, (32, 3, 32, 32)),
}


def own(output: Tensor, y: Tensor) -> Tensor:
    return -output.log_softmax(1).gather(1, y[:, None]).mean()


LOSSES: dict[str, Callable[..., Any]] = {
    "F.cross_entropy": F.cross_entropy,
    "losses.cross_entropy": losses.cross_entropy,
    "a mean of one's own": own,
}


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    for network, (build, shape) in NETWORKS.items():
        model, x, y = build().eval(), torch.randn(shape), torch.arange(shape[0]) % 10
        scores = model(x).detach().requires_grad_()
        runs: dict[str, Callable[[], Any]] = {
            "pass": lambda model=model, x=x, y=y: F.cross_entropy(model(x), y).backward()
        }
        for name, loss_fn in LOSSES.items():
            found = SampleLoss(loss_fn)
            runs[name] = lambda loss=loss_fn, s=scores, y=y: loss(s, y).sum().backward()
            runs[f"{name}, found"] = lambda loss=found, s=scores, y=y: loss.each(s, y).sum().backward()
        times: dict[str, list[float]] = {key: [] for key in runs}
        for turn in range(rounds + 1):
            for key, run in runs.items():
                took = seconds(run)
                if turn:  # the first round warms up
                    times[key].append(took)
        for name in LOSSES:
            more = median(times[f"{name}, found"]) - median(times[name])
            print(f"{network}: {name}: {1e3 * more:.2f} ms, {more / median(times['pass']):.2%} of a pass", flush=True)


if __name__ == "__main__":
    main()
