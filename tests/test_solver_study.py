"""The study of solvers: every way on one case at one damping, and what of it is written down."""

import json

import pytest
import torch
from torch import nn

from benchmarks.solvers import study
from benchmarks.solvers.__main__ import result
from benchmarks.solvers.cases import Case, Study
from benchmarks.untuned import Missing, Sources
from unlearnx import Request
from unlearnx.metrics import accuracy


def small(sources, seed):
    torch.manual_seed(seed)
    x, y = torch.randn(90, 6), torch.arange(90) % 3
    x[torch.arange(90), y] += 2
    model = nn.Linear(6, 3)
    for _ in range(50):
        loss = nn.functional.cross_entropy(model(x), y)
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.data -= g
    request = Request.remove_class((x, y), 0)

    def measure(model):
        return {"forget_accuracy": accuracy(model, request.forget_set)}

    return Case(model, request, measure, {"forget_accuracy": 0.0})


def missing(sources, seed):
    raise Missing("needs a folder")


def test_every_way_at_one_damping(monkeypatch):
    monkeypatch.setattr(study, "CASES", {"small": Study(small, (0, 1)), "missing": Study(missing, (0,))})
    said = []
    rows = list(study.run(["missing", "small"], 2, study.NAMES, Sources(data=None), said.append))
    assert said[0] == "missing: left out: needs a folder"
    assert [row["way"] for row in rows if row["seed"] == 1] == ["before", *study.NAMES, "retrained"]
    assert len({row["damping"] for row in rows}) == 2  # one for each seed
    made = [row for row in rows if row["way"] in study.NAMES]
    assert all(row["applied"] and row["seconds"] > 0 for row in made)
    assert all(row["measures"]["forget_accuracy"] < 0.5 for row in made)
    assert {row["way"] for row in made if row["residual"] is not None} == set(study.SOLVERS)
    assert all(row["residual"] <= 1e-2 for row in made if "CG" in row["way"] or "PCG" in row["way"])
    summary = json.loads(json.dumps(result(rows)))["summary"]["small"]
    assert summary["CG"]["products"] > summary["EK-FAC"]["products"] == pytest.approx(2)
    assert summary["retrained"] == {"forget_accuracy": 0.0}
