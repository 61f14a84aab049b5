"""Random numbers of our own leave the caller's alone, and wake no GPU that is not used."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import unlearnx
from unlearnx import methods
from unlearnx._random import forked_random
from unlearnx.methods.distillation import random_network
from unlearnx.methods.shards import build


def test_numbers_start_from_the_seed_and_go_on_as_before():
    with forked_random(seed=7):
        first = torch.rand(3)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with forked_random("cpu", None, seed=7):
        assert torch.equal(torch.rand(3), first)
        with forked_random(seed=7):
            assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_the_callers_numbers_go_on():
    with forked_random():
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), first)


def test_devices_are_named_everywhere():
    """Without them torch saves the states of all GPUs, with a warning, and ``manual_seed`` changes those of all."""
    for file in Path(unlearnx.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                assert not function.endswith("fork_rng") or node.args or node.keywords, file
                assert function not in ("torch.manual_seed", "torch.seed", "torch.cuda.manual_seed_all"), file


class TwoGpus:
    """Stands in for the random states of GPUs; each is named that is read, seeded or set."""

    def __init__(self, monkeypatch, initialised):
        self.used = set()
        functions = {
            "is_initialized": lambda: initialised,
            "current_device": lambda: 0,
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "get_rng_state": lambda device: self.used.add(device),
            "set_rng_state": lambda state, device: self.used.add(device),
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(torch.cuda, "default_generators", [torch.Generator(), torch.Generator()])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("devices", "initialised", "expected"),
    [
        ([], False, set()),
        (["cpu"], False, set()),
        ([None], True, {0}),
        (["cuda"], False, {0}),
        (["cuda:1"], False, {1}),
        ([torch.device("cuda", 1)], True, {0, 1}),
    ],
)
def test_gpus_that_are_named(devices, initialised, expected, monkeypatch):
    gpus = TwoGpus(monkeypatch, initialised)
    with forked_random(*devices, seed=3):
        pass
    assert gpus.used == expected


@pytest.mark.filterwarnings("error")
def test_models_on_the_cpu_wake_no_gpu(monkeypatch):
    gpus = TwoGpus(monkeypatch, initialised=False)
    model = nn.Linear(4, 3)
    random_network(model, 0)
    build(lambda: nn.Linear(4, 3), 0, "cpu")
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    methods.Retrain(epochs=1, factory=lambda: nn.Linear(4, 3))(
        model, methods.Request.remove(torch.utils.data.TensorDataset(x, y), [0, 1])
    )
    assert gpus.used == set()


@pytest.mark.cuda
def test_numbers_of_a_gpu_go_on_as_before():
    state = torch.cuda.get_rng_state()
    with forked_random("cuda", seed=5):
        first = torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), state)
    with forked_random("cuda", seed=5):
        assert torch.equal(torch.rand(3, device="cuda"), first)
