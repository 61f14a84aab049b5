"""What methods return."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from torch import nn

from unlearnx import Outcome, Request
from unlearnx.methods import SSD, FineTune, FisherMasking, GradientAscent, Pipeline, RandomPerturbation


@pytest.fixture
def study():
    torch.manual_seed(0)
    x, y = torch.randn(60, 8), torch.arange(60) % 3
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), Request.remove((x, y), range(6))


def test_fields(study):
    model, request = study
    outcome = FineTune()(model, request)
    assert [field.name for field in dataclasses.fields(outcome)] == [
        "model",
        "applied",
        "forgotten",
        "evidence",
        "reason",
        "loss_before",
        "loss_after",
        "seconds",
        "gradient_evaluations",
        "info",
    ]
    assert outcome.applied is True
    assert outcome.reason is None
    assert outcome.loss_after < outcome.loss_before
    assert outcome.forgotten == "unknown"
    assert outcome.evidence == {}


@pytest.mark.parametrize("copied", [lambda o: o, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_info_answers_the_names_that_are_fields_now(copied):
    made = Outcome(
        model=nn.Linear(1, 1),
        applied=False,
        reason="why not",
        loss_before=2.0,
        loss_after=1.0,
        seconds=0.0,
        gradient_evaluations=3,
        info={"own": 1},
    )
    info = copied(made).info
    assert (info["applied"], info["reason"], info["corrected_loss"], info["own"]) == (False, "why not", [2.0, 1.0], 1)
    assert (info.get("reason"), info.get("own"), info.get("other"), info.get("other", 5)) == ("why not", 1, None, 5)
    assert list(info) == ["own"]
    assert json.loads(json.dumps(info)) == {"own": 1}
    with pytest.raises(KeyError, match="other"):
        info["other"]
    assert "reason" not in dataclasses.replace(made, reason=None, applied=True).info
    assert dataclasses.replace(made, applied=True).info["applied"] is True


@pytest.mark.parametrize(
    "method",
    [
        FineTune(lr=0.0),
        GradientAscent(lr=0.0),
        RandomPerturbation(beta=0.0),
        SSD(alpha=0.5, lam=1e9),  # dampens by a factor of 1
        Pipeline([FineTune(lr=0.0), RandomPerturbation(beta=0.0)]),
    ],
    ids=lambda method: type(method).__name__,
)
def test_where_no_weight_moves_nothing_is_applied(study, method):
    model, request = study
    outcome = method(model, request)
    assert not outcome.applied
    assert outcome.reason == "no parameter changed"
    assert outcome.loss_after == outcome.loss_before


def test_masking_weights_that_are_zero_already(study):
    model, request = study
    for p in model.parameters():
        nn.init.zeros_(p)
    assert FisherMasking(ratio=0.1)(model, request).reason == "no parameter changed"


def test_statistics_alone_do_not_count(study):
    _, request = study
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)).eval()
    outcome = FineTune(lr=0.0)(model, request)
    assert not outcome.applied
    assert all(torch.equal(t, outcome.model.state_dict()[name]) for name, t in model.state_dict().items())
