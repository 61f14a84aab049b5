"""The same answers on every device, wherever the data lies."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.curvature import CurvatureOperator, LiSSA, fisher_diagonal, grad_difference
from unlearnx.methods import (
    KFADE,
    NPO,
    RMU,
    SCRUB,
    SSD,
    BadTeacher,
    FineTune,
    FirstOrder,
    FisherMasking,
    GradientAscent,
    NegGrad,
    Pipeline,
    RandomPerturbation,
    Retrain,
    SalUn,
    SecondOrder,
    StochasticTeacher,
    TaskVector,
)


@pytest.fixture(scope="module")
def study():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (120,), generator=generator)
    x = 3 * torch.eye(3, 6)[y] + torch.randn(120, 6, generator=generator)
    given = y.clone()
    given[:20] = (y[:20] + 1) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double().eval()
    return model, x.double(), given, y


@pytest.mark.parametrize("data_device", ["cpu", "same"])
@pytest.mark.parametrize(
    "method",
    [
        SSD(alpha=0.5, fisher_type="mc"),
        FirstOrder(steps=2),
        SecondOrder(LiSSA(batch_size=50, recursion_depth=10), steps=1, params="last:2"),
        FineTune(params="last:2"),
        Retrain(epochs=1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_methods(study, method, data_device, device):
    model, x, given, y = study
    expected = method(model, Request.correct((x, given), (x, y)))
    there = device if data_device == "same" else "cpu"
    x, given, y = (t.to(there) for t in (x, given, y))
    outcome = method(copy.deepcopy(model).to(device), Request.correct((x, given), (x, y)))
    assert outcome.applied == expected.applied
    assert outcome.gradient_evaluations == expected.gradient_evaluations
    for name, p in outcome.model.named_parameters():
        assert p.device.type == device
        if device == "cpu" or not isinstance(method, Retrain):  # initial weights are drawn on the device
            torch.testing.assert_close(p.cpu(), expected.model.get_parameter(name), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("data_device", ["cpu", "same"])
@pytest.mark.parametrize(
    "method",
    [
        SSD(fisher_type="label_free"),
        FisherMasking(ratio=0.05),
        GradientAscent(),
        KFADE(),
        NegGrad(),
        NPO(),
        RMU(),
        TaskVector(),
        SalUn(),
        SCRUB(epochs=2),
        BadTeacher(),
        StochasticTeacher(),
        Pipeline([RandomPerturbation(), FineTune()]),
    ],
    ids=lambda m: type(m).__name__,
)
def test_removals(study, method, data_device, device):
    model, x, _, y = study
    method = dataclasses.replace(method, max_increase=math.inf)
    expected = method(model, Request.remove_class((x, y), 1))
    there = device if data_device == "same" else "cpu"
    outcome = method(copy.deepcopy(model).to(device), Request.remove_class((x.to(there), y.to(there)), 1))
    for name, p in outcome.model.named_parameters():
        assert p.device.type == device
        torch.testing.assert_close(p.cpu(), expected.model.get_parameter(name), rtol=1e-6, atol=1e-8)


def test_engines(study, device):
    model, x, given, y = study
    there = copy.deepcopy(model).to(device)
    data, old, new = (x, y), (x, given), (x, y)
    v = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    on_device = {name: t.to(device) for name, t in v.items()}
    pairs = [
        (grad_difference(model, F.cross_entropy, old, new), grad_difference(there, F.cross_entropy, old, new)),
        (fisher_diagonal(model, F.cross_entropy, data), fisher_diagonal(there, F.cross_entropy, data)),
        (
            CurvatureOperator(model, F.cross_entropy, data).matvec(v),
            CurvatureOperator(there, F.cross_entropy, data).matvec(on_device),
        ),
    ]
    for expected, actual in pairs:
        for name, t in expected.items():
            torch.testing.assert_close(actual[name].cpu(), t, rtol=1e-8, atol=1e-10)
