"""What public functions say of arguments that are of another kind than their annotations, or that do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from unlearnx import Request, losses, metrics
from unlearnx._arguments import check_fields, checked
from unlearnx._checks import known_as
from unlearnx._data import Data
from unlearnx.curvature import grad_difference
from unlearnx.methods import SISA, Retrain, SecondOrder
from unlearnx.models import Training


@checked
def echo(
    n: int = 1,
    rate: float | str = 1.0,
    data: Data | None = None,
    model: nn.Module | None = None,
    t: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    file: Path | None = None,
    request: Request | None = None,
):
    return n, file


def samples(n=12):
    return torch.randn(n, 6), torch.arange(n) % 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 1.5}, TypeError, "^n is 1.5, expected an integer$"),
        ({"n": True}, TypeError, "^n is True, expected an integer$"),
        ({"n": 2**63}, ValueError, "^n is 9223372036854775808, expected an integer of 64 bits$"),
        ({"rate": [1.0]}, TypeError, "^rate is of type list, expected a number or a string$"),
        ({"rate": float("nan")}, ValueError, "^rate is nan, expected a number$"),
        ({"model": nn.Linear}, TypeError, "^model is the class Linear, expected a torch.nn.Module or None$"),
        ({"model": nn.LazyLinear(3)}, ValueError, "^model: parameter 'weight' is not initialised yet"),
        (
            {"t": torch.eye(2).to_sparse()},
            TypeError,
            "^t is a tensor of layout torch.sparse_coo on cpu, expected a dense tensor",
        ),
        ({"dtype": torch.int8}, TypeError, "^dtype is torch.int8, expected a floating dtype such as torch.bfloat16 or"),
        ({"device": "cupboard"}, TypeError, "^device is 'cupboard', expected a device that is here or None$"),
        ({"request": samples()}, TypeError, "^request is of type tuple, expected a Request or None$"),
        ({"data": torch.zeros(3)}, ValueError, "^data: expected a pair"),
        ({"data": (torch.zeros(0, 2), torch.zeros(0))}, ValueError, "^data: is empty"),
        ({"data": tuple(t.to("meta") for t in samples())}, ValueError, "^data: holds a tensor on the meta device"),
        ({"data": DataLoader(TensorDataset(torch.zeros(3, 2)), 2)}, ValueError, r"^data: expected samples \(x, y\)"),
    ],
)
def test_kinds(arguments, error, message):
    with pytest.raises(error, match=message):
        echo(**arguments)


def test_what_is_right_passes():
    taken = {"data": samples(), "model": nn.Linear(2, 2), "t": torch.ones(2), "request": Request.remove(samples(), [1])}
    assert echo(**taken, dtype=torch.bfloat16, device="cpu", rate="auto") == (1, None)
    n, file = echo(np.int32(3), file="a/b")
    assert (type(n), n, file) == (int, 3, Path("a/b"))


def test_calls_that_python_refuses_are_left_to_it():
    with pytest.raises(TypeError, match=r"echo\(\) got an unexpected keyword argument 'm'"):
        echo(m=1)


def test_fields():
    @dataclass
    class Settings:
        n: int = 1
        rate: float | None = None

    settings = Settings(np.int64(2))
    check_fields(settings)
    assert type(settings.n) is int
    with pytest.raises(TypeError, match=r"^rate is 'much', expected a number or None$"):
        check_fields(Settings(rate="much"))


def test_errors_of_inner_functions_name_the_outer_argument():
    with pytest.raises(ValueError, match=r"^forget: is empty$"), known_as(data="forget"):
        raise ValueError("data: is empty")
    with pytest.raises(ValueError, match=r"^database: is empty$"), known_as(data="forget"):
        raise ValueError("database: is empty")
    with pytest.raises(KeyError), known_as(data="forget"):
        raise KeyError("data")


MODEL = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
WIDE = torch.randn(12, 6, dtype=torch.float64), samples()[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.zrf(MODEL, MODEL, WIDE), "^forget: expected samples that the model takes"),
        (lambda: metrics.mia(MODEL, forget=samples(), retain=WIDE, test=samples()), "^retain: expected samples that"),
        (
            lambda: metrics.zrf(MODEL, nn.Sequential(MODEL, nn.Linear(3, 4)), samples()),
            r"^random_model: returned an output of shape \[12, 4\]",
        ),
        (lambda: grad_difference(MODEL, F.cross_entropy, samples(), WIDE), "^new: expected samples that the model"),
        (
            lambda: Retrain(epochs=1, factory=MODEL)(MODEL, Request.remove(samples(), [1])),
            "^factory: expected a function without arguments",
        ),
        (lambda: SISA(MODEL, "nowhere"), "^factory: expected a function without arguments"),
        (lambda: Training(1).run(MODEL, WIDE), "^data: expected samples that the model takes"),
        (lambda: SecondOrder(damping=1e300), "^damping is 1e[+]300, expected a finite number"),
        (lambda: losses.cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 2])), "^y: expected classes, 0 to 1"),
        (lambda: losses.mse(torch.zeros(3), torch.zeros(4)), "^y: has labels of shape"),
    ],
)
def test_misfits_name_the_argument_of_the_caller(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_models_without_values_are_not_run_on_random_ones():
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"^b: parameter '0.weight' is not initialised yet"):
        metrics.activation_distance(MODEL, lazy, samples())
    assert metrics.activation_distance(MODEL, MODEL, samples()) == 0
