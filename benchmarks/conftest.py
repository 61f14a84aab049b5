"""``pytest benchmarks``: measures ours beside every other way, and reports; see docs/benchmarks.md.

With pytest's own ``--strict``, a claim that a run does not bear out is a failure.
"""

import os
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from benchmarks import summary
from benchmarks.comparison import Claims, Comparison, use_idle_cores
from unlearnx import build_info
from unlearnx._files import check_room

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "benchmarks.json"
RESULTS_ROOM = 2**20  # bytes
QUICK_RUN_SECONDS = 200  # after which the default run begins no further benchmark: it is to take under five minutes

ENTRIES = pytest.StashKey[list]()
MACHINE = pytest.StashKey[dict]()
NOT_RUN = pytest.StashKey[defaultdict]()
LEFT_OUT = pytest.StashKey[int]()
STARTED = pytest.StashKey[float]()


def pytest_addoption(parser):
    group = parser.getgroup("unlearnx")
    group.addoption("--all", action="store_true", help="run every benchmark, not only the five minutes that tell most")
    group.addoption("--cifar", metavar="FOLDER", help="folder or archive of CIFAR-10, to measure the methods on it too")
    group.addoption(
        "--cifar-images", type=int, metavar="N", help="training images of CIFAR-10 to use, all where not given"
    )
    group.addoption(
        "--cifar-epochs", type=int, metavar="N", help="epochs of training on them, the studies' own where not given"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.addinivalue_line("markers", "headline: part of the default run")
    config.stash[ENTRIES], config.stash[NOT_RUN], config.stash[LEFT_OUT] = [], defaultdict(list), 0
    config.stash[STARTED] = time.monotonic()
    if not config.option.verbose:  # the summary says what pytest's list of skips and pytest-benchmark's table say
        config.option.benchmark_quiet, config.option.reportchars = True, "fE"
        config.option.disable_warnings = True
    if not config.option.benchmark_json:
        try:
            RESULTS.parent.mkdir(exist_ok=True)
            check_room(RESULTS.parent, RESULTS_ROOM)
        except OSError as error:  # now, not after the benchmarks
            raise pytest.UsageError(f"no room for the results: {error}") from error
        config.option.benchmark_json = str(RESULTS)
    if not config.option.collectonly:
        use_idle_cores()


def _chosen_by_hand(config):
    """Whether single files or tests are asked for."""
    return bool(config.option.keyword or config.option.markexpr or any(".py" in arg for arg in config.args))


def pytest_collection_modifyitems(config, items):
    if config.option.all or _chosen_by_hand(config):
        return
    kept = [item for item in items if item.get_closest_marker("headline")]
    others = [item for item in items if item not in kept]
    config.stash[LEFT_OUT] = len(others)
    config.hook.pytest_deselected(items=others)
    items[:] = sorted(kept, key=_turn)


def _turn(item):
    """What the package is for comes first, then the ops, then the engines, whose rivals take longest."""
    name = item.path.stem
    return 0 if name == "test_forgetting" else 2 if name in ("test_fisher", "test_curvature") else 1


def pytest_runtest_setup(item):
    config = item.config
    late = time.monotonic() - config.stash[STARTED] > QUICK_RUN_SECONDS
    if late and not (config.option.all or _chosen_by_hand(config)):
        pytest.skip("the default run ends before five minutes are over; `pytest benchmarks --all` brings it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if outcome.skipped and isinstance(outcome.longrepr, tuple):
        reason = outcome.longrepr[2].removeprefix("Skipped: ")
        item.config.stash[NOT_RUN][reason].append(item.name.removeprefix("test_"))
    return outcome


def pytest_report_header(config):
    mode = "all" if config.option.all or _chosen_by_hand(config) else "the five minutes that tell most; --all: the rest"
    return f"unlearnx: threads: {torch.get_num_threads()}, torch {torch.__version__}; {mode}"


@pytest.fixture
def cifar(request):
    """Folder of CIFAR-10, and the sizes that the studies take."""
    folder = request.config.getoption("--cifar")
    if folder is None:
        pytest.skip("needs CIFAR-10; `pytest benchmarks --all --cifar FOLDER` names its folder or archive")
    sizes = {"limit": "--cifar-images", "epochs": "--cifar-epochs"}
    return Path(folder), {name: request.config.getoption(option) for name, option in sizes.items()}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def claim(benchmark, request):
    return Claims(benchmark, "--strict" in request.config.invocation_params.args)


@pytest.fixture
def compare(benchmark, claim, device, request):
    config = request.config
    return Comparison(benchmark, claim, device, quick=not (config.option.all or _chosen_by_hand(config)))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["unlearnx"] = build_info()
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["amx"] = torch.cpu._is_amx_tile_supported()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keep what a result depends on, not whose machine it was."""
    for key in ("node", "release", "python_build"):
        output_json["machine_info"].pop(key, None)
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
    config.stash[ENTRIES] = output_json["benchmarks"]
    config.stash[MACHINE] = output_json["machine_info"]


def pytest_terminal_summary(terminalreporter, config):
    entries = config.stash[ENTRIES]
    terminalreporter.section("unlearnx benchmarks")
    for line in summary.report(entries, summary.committed(), config.stash[NOT_RUN], config.stash[LEFT_OUT]):
        terminalreporter.write_line(line)
    if entries:
        machine = config.stash[MACHINE]
        cpu = machine["cpu"].get("brand_raw", machine["processor"]) + (" with AMX" if machine["amx"] else "")
        written = os.path.relpath(config.option.benchmark_json)
        terminalreporter.write_line("")
        terminalreporter.write_line(f"{cpu}, threads: {machine['threads']}, torch {machine['torch']}")
        terminalreporter.write_line(f"Results: {written}")
