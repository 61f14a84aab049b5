"""Verdicts on forgetting, from models whose answers are known."""

import math

import pytest
import torch
from torch import nn

from unlearnx import Request, forget
from unlearnx.methods import SSD, FineTune, FirstOrder, Pipeline, judge
from unlearnx.methods.evidence import too_much
from unlearnx.methods.verdict import _verdict
from unlearnx.metrics import Level, UnseenLevel


@pytest.mark.parametrize(
    ("before", "after", "level", "expected"),
    [
        (1.0, 0.0, Level(0.0, 0.0, 0.0), "yes"),
        (1.0, 0.05, Level(0.0, 0.0, 0.0), "yes"),
        (1.0, 0.06, Level(0.0, 0.0, 0.0), "partly"),
        (1.0, 0.6, Level(0.0, 0.0, 0.0), "no"),
        (1.0, 0.98, Level(0.97, 0.93, 1.0), "yes"),
        (1.0, 1.0, Level(0.97, 0.89, 1.0), "unknown"),  # 11 points from one end
        (1.0, 0.8, Level(0.6, 0.3, 0.9), "unknown"),
        (1.0, 0.5, Level(0.9, 0.88, 0.92), "partly"),  # the labels are avoided
        (0.6, 0.9, Level(0.2, 0.15, 0.25), "no"),
        (0.5, 0.3, Level(0.9, 0.85, 0.95), "no"),  # it never knew them, and now less
    ],
)
def test_rule(before, after, level, expected):
    assert _verdict(before, after, level) == expected


def test_no_yes_beyond_ten_points():
    generator = torch.Generator().manual_seed(0)
    for low, estimate, high in torch.rand(300, 3, generator=generator).sort(1).values.tolist():
        for after in torch.linspace(0, 1, 41).tolist():
            if _verdict(1.0, after, Level(estimate, low, high)) == "yes":
                assert max(abs(after - low), abs(after - high)) <= 0.1 + 1e-9


class Stored(nn.Module):
    """Predicts stored classes of samples that are numbers."""

    def __init__(self, classes, count=3):
        super().__init__()
        scores = 10.0 * nn.functional.one_hot(torch.as_tensor(classes), count)
        self.scores = nn.Parameter(scores)

    def forward(self, x):
        return self.scores[x]


def test_evidence_and_sentence():
    y = torch.arange(90) % 3
    knows = Stored(y)
    forgot = Stored(torch.where(y == 2, 0, y))
    request = Request.remove_class((torch.arange(90), y), 2)
    verdict, evidence = judge(knows, forgot, request)
    assert verdict == "yes"
    assert (evidence["before"]["accuracy"], evidence["after"]["accuracy"]) == (1.0, 0.0)
    assert evidence["unseen"]["accuracy"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert "0.0% of it, 100.0% before" in evidence["sentence"]
    verdict, evidence = judge(knows, knows, request)
    assert verdict == "no"
    assert "still knows" in evidence["sentence"]


def test_an_attack_is_told_where_held_out_data_are_at_hand():
    x, y = torch.arange(120), torch.arange(120) % 3
    wrong = (y + 1) % 3
    knows = Stored(torch.where(x < 90, y, torch.where(x % 2 == 0, y, wrong)))  # of held-out data it knows one half
    forgot = Stored(torch.where((x >= 30) & (x < 90) | (x % 2 == 0), y, wrong))
    held_out = x[90:], y[90:]
    request = Request.remove((x[:90], y[:90]), range(30))
    assert judge(knows, forgot, request)[1]["after"]["attack"] is None
    for _, evidence in (
        judge(knows, forgot, request.with_held_out(held_out)),
        judge(knows, forgot, request, held_out),
        judge(knows, forgot, request.with_held_out(held_out), forgot),
    ):
        assert (evidence["before"]["attack"], evidence["after"]["attack"]) == (pytest.approx(0.5), pytest.approx(0))
        level = evidence["unseen"]["attack"]
        assert (level["low"], level["high"]) == (0, pytest.approx((-math.log(0.05) / 2 * (1 / 30 + 1 / 30)) ** 0.5))
        assert "An attack on the loss tells 0.0% of it from held-out data, 50.0% before" in evidence["sentence"]


def test_too_much_is_told_by_each_measure():
    x, y = torch.arange(90), torch.arange(90) % 3
    request, wrong = Request.remove((x, y), range(30)), torch.where(x < 30, (y + 1) % 3, y)
    level = UnseenLevel(Level(0.9, 0.8, 1.0), Level(0.8, 0.7, 0.9), Level(0.4, 0.1, 0.8), "It was measured.")
    assert too_much(judge(Stored(y), Stored(y), request, level)[1]) is None
    warning = too_much(judge(Stored(y), Stored(wrong), request, level)[1])
    assert "gives its labels to 0.0% of the forget set, 100.0% before, where 80.0% to 100.0% are expected" in warning
    assert "by 0.0% on average, 100.0% before, where 70.0% to 90.0% are expected" in warning
    assert "a mean loss of 10 nats on the forget set, 9.08e-05 before, where 0.1 to 0.8 are expected" in warning
    assert too_much(judge(Stored(wrong), Stored(wrong), request, level)[1]) is None  # nor did it know them before
    unsure = Stored(y)
    unsure.scores.data *= 0.04
    warning = too_much(judge(Stored(y), unsure, request, level)[1])  # all labels are given, and hardly believed
    assert "gives its labels" not in warning
    assert "on average" in warning
    assert "nats" in warning


def test_what_forget_is_given_as_reference_counts_as_held_out():
    x, y = torch.randn(90, 8), torch.arange(90) % 3
    request = Request.remove((x[:60], y[:60]), range(6))
    evidence = forget(nn.Linear(8, 3), request, reference=(x[60:], y[60:])).evidence
    assert evidence["unseen"]["attack"] is not None
    assert forget(nn.Linear(8, 3), request).evidence["unseen"]["attack"] is None


def test_a_retrained_model_decides():
    y = torch.arange(90) % 3
    request = Request.remove((torch.arange(90), y), range(30))
    wrong = y.clone()
    wrong[:30] = (y[:30] + 1) % 3
    assert judge(Stored(y), Stored(wrong), request, Stored(wrong))[0] == "yes"
    assert judge(Stored(y), Stored(wrong), request, Stored(y))[0] != "yes"
    evidence = judge(Stored(y), Stored(wrong), request, Stored(y))[1]
    assert "avoids" in evidence["sentence"]


def test_outputs_of_another_kind_are_unknown():
    x = torch.randn(40, 5)
    request = Request.remove((x, x[:, :1]), range(4))
    outcome = FineTune(loss_fn=nn.functional.mse_loss)(nn.Linear(5, 1), request)
    assert outcome.forgotten == "unknown"
    assert "not known" in outcome.evidence["sentence"]


@pytest.mark.parametrize("method", [FirstOrder(), Pipeline([SSD(alpha=2.0), FineTune()])])
def test_methods_say_it(method):
    torch.manual_seed(0)
    x = torch.randn(120, 6) + 3 * torch.eye(3).repeat_interleave(2, 1)[torch.arange(120) % 3]
    y = torch.arange(120) % 3
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    request = Request.remove_class((x, y), 2)
    outcome = method(model, request)
    assert (outcome.forgotten, outcome.evidence) == judge(model, outcome.model, request)
    assert outcome.evidence["before"]["accuracy"] > 0.9


def test_unknown_level_is_said():
    assert not UnseenLevel(None, None, None, "Because.").known
