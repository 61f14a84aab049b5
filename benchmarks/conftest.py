"""Both sides of every claim in one process, interleaved: medians, ratios, and the environment beside them."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unlearnx import build_info

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def pytest_addoption(parser):
    group = parser.getgroup("unlearnx")
    group.addoption("--cifar", metavar="FOLDER", help="folder or archive of CIFAR-10, to measure the methods on it too")
    group.addoption(
        "--cifar-images", type=int, metavar="N", help="training images of CIFAR-10 to use, all where not given"
    )
    group.addoption(
        "--cifar-epochs", type=int, metavar="N", help="epochs of training on them, the studies' own where not given"
    )


@pytest.fixture
def cifar(request):
    """Folder of CIFAR-10, and the sizes that the studies take."""
    folder = request.config.getoption("--cifar")
    if folder is None:
        pytest.skip("--cifar FOLDER is not given: it names CIFAR-10")
    sizes = {"limit": "--cifar-images", "epochs": "--cifar-epochs"}
    return Path(folder), {name: request.config.getoption(option) for name, option in sizes.items()}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep what a result depends on, not whose machine it was."""
    for key in ("node", "release", "python_build"):
        output_json["machine_info"].pop(key, None)
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["unlearnx"] = build_info()
    machine_info["torch"] = torch.__version__
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


class Comparison:
    """Median seconds of competitors that took turns."""

    def __init__(self, benchmark, device: str):
        self._benchmark, self._device = benchmark, device

    def run(
        self, ours: Callable[[], object], others: dict[str, Callable[[], object]], rounds: int = 15, warmups: int = 2
    ) -> dict:
        """Ratios other / ours, also kept in the benchmark's extra_info; `ours` is what pytest-benchmark reports."""
        competitors = {"ours": ours, **others}
        for run in competitors.values():  # allocation, compilation, caches
            for _ in range(warmups):
                run()
        times: dict[str, list[float]] = {name: [] for name in competitors}
        for _ in range(rounds):
            for name, run in competitors.items():
                times[name].append(_seconds(run, self._device))
        medians = {name: statistics.median(t) for name, t in times.items()}
        ratios = {name: medians[name] / medians["ours"] for name in others}
        self._benchmark.extra_info.update(device=self._device, seconds=medians, ratios=ratios)
        self._benchmark.pedantic(ours, rounds=min(rounds, 3))
        line = ", ".join(f"{name} {1e3 * medians[name]:.2f} ms ({r:.2f}x)" for name, r in ratios.items())
        print(f"\nours {1e3 * medians['ours']:.2f} ms; {line}")
        return ratios


@pytest.fixture
def compare(benchmark, device):
    return Comparison(benchmark, device)
