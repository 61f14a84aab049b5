"""Methods with default arguments beside the same with the pace chosen by hand, on the poisoned network of CIFAR-10.

    python -m benchmarks.defaults [--methods NAME ...] [--images N] [--rounds N] [--out FILE]

By hand, the frozen layers run in bfloat16 and 32 samples a pass, and what is changed runs in float32: what suits this
network on a processor with AMX. By default, nothing is said. The two take turns. Needs UNLEARNX_CIFAR and
UNLEARNX_MODELS; all images take eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.result_file import write_result
from benchmarks.untuned import Sources
from unlearnx._precision import fast_dtype
from unlearnx.curvature import FrozenPrefix
from unlearnx.methods import SSD, FineTune, FirstOrder, Method, Request, SecondOrder
from unlearnx.methods.frozen_features import request_on_features
from unlearnx.metrics import accuracy
from unlearnx.models import vgg_cifar10

METHODS: dict[str, Method] = {
    "SSD": SSD(alpha=10.0, params="last:6"),
    "FirstOrder": FirstOrder(params="last:6"),
    "SecondOrder": SecondOrder(params="last:6"),
    "FineTune": FineTune(epochs=3, params="last:6"),
}
FAST = fast_dtype("cpu")
HAND_PASS = 32
AIM = 1.3  # times the seconds by hand

Unlearn = Callable[[Method, nn.Module, Request], tuple[nn.Module, Any]]


def by_default(method: Method, model: nn.Module, request: Request) -> tuple[nn.Module, Any]:
    outcome = method(model, request)
    return outcome.model, outcome.info["pace"]


def by_hand(method: Method, model: nn.Module, request: Request) -> tuple[nn.Module, Any]:
    cut = FrozenPrefix(model, method.params, request.dataset)
    on_features = request_on_features(request, cut, batch_size=HAND_PASS, dtype=FAST)
    outcome = replace(method, autocast=None)(cut.head, on_features)
    whole = vgg_cifar10().eval()
    whole.load_state_dict({**model.state_dict(), **outcome.model.state_dict()})
    return whole, None


def run(names: list[str], images: int | None, rounds: int) -> dict[str, Any]:
    """Seconds, seconds of the processor and share of the lost accuracy restored, of each method both ways."""
    sources = Sources()
    splits = sources.cifar10()
    poison = np.load(sources.file("cifar10-poison.npz"))
    clean, poisoned = (sources.weights(vgg_cifar10, f"cifar10-vgg-{name}.pt") for name in ("clean", "poisoned"))
    given = splits.train_y.clone()
    given[torch.from_numpy(poison["indices"])] = torch.from_numpy(poison["given"]).to(given)
    x = splits.train_x[:images]
    request = Request.correct((x, given[:images]), (x, splits.train_y[:images]))

    def tested(model: nn.Module) -> float:
        return accuracy(model, (splits.test_x, splits.test_y), batch_size=64, autocast=FAST)

    lowest = tested(poisoned)
    lost = tested(clean) - lowest
    ways: dict[str, Unlearn] = {"default": by_default, "hand": by_hand}
    found: dict[str, Any] = {}
    for name in names:
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for turn in range(rounds):
            for way in list(ways)[:: -1 if turn % 2 else 1]:
                start, busy = time.perf_counter(), time.process_time()
                model, pace = ways[way](METHODS[name], poisoned, request)
                seconds, busy = time.perf_counter() - start, time.process_time() - busy
                restored = (tested(model) - lowest) / lost
                rows[way].append({"seconds": seconds, "cpu_seconds": busy, "restored": restored, "pace": pace})
        found[name] = rows
        print(described(name, rows), flush=True)
    return found


def described(name: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    def middle(way: str, key: str) -> float:
        return median(row[key] for row in rows[way])

    seconds, busy = ({way: middle(way, key) for way in rows} for key in ("seconds", "cpu_seconds"))
    ratio = seconds["default"] / seconds["hand"]
    return (
        f"{name}: default {seconds['default']:.1f} s, by hand {seconds['hand']:.1f} s, {ratio:.2f}x "
        f"({busy['default'] / busy['hand']:.2f}x of the processor's time), {'met' if ratio <= AIM else 'missed'}; "
        f"restored {middle('default', 'restored'):.1%} and {middle('hand', 'restored'):.1%}; "
        f"pace {rows['default'][0]['pace']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--images", type=int, help="the first ones alone")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    asked = parser.parse_args()
    found = run(asked.methods, asked.images, asked.rounds)
    if asked.out is not None:
        write_result(asked.out, found)


if __name__ == "__main__":
    main()
