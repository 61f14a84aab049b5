import runpy

import pytest
import torch

from unlearnx import ops, selftest
from unlearnx.selftest import cases

CPU = torch.device("cpu")


def test_passes():
    state = torch.get_rng_state()
    lines = []
    assert selftest.run(lines.append)
    assert {line.split()[0] for line in lines} >= {*ops.__all__, "cpu"}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("op", "status"), [("ssd_dampen_", 0), ("new_op", 1)])
def test_exit_status(op, status, monkeypatch, capsys):
    monkeypatch.setattr(ops, "__all__", [op])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("unlearnx.selftest", run_name="__main__")
    assert stop.value.code == status
    assert op in capsys.readouterr().out


def test_an_op_without_a_case_fails(monkeypatch):
    monkeypatch.setattr(ops, "__all__", ["ssd_dampen_", "new_op"])
    lines = []
    assert not selftest.run(lines.append)
    assert "FAILED new_op on cpu in float32: has no case in unlearnx/selftest/cases.py" in lines
    assert lines[-1].endswith("4 failures")


@pytest.mark.parametrize("dtype", selftest.DTYPES)
def test_a_wrong_result_is_reported(dtype, monkeypatch):
    right = ops.softmax_linear_hvp
    monkeypatch.setattr(ops, "softmax_linear_hvp", lambda *args, **kw: right(*args, **kw) * 1.05)
    found = selftest.check("softmax_linear_hvp", CPU, dtype)
    assert found.error == pytest.approx(0.05, rel=0.1)
    assert "result 0 is off by 5" in found.problem


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (lambda t: torch.full_like(t, torch.nan), "off by inf"),
        (lambda t: t[:1], "off by inf"),
        (lambda t: t.bool(), "raised KeyError"),
        (lambda t: t.missing, "raised AttributeError: 'Tensor' object has no attribute 'missing'"),
    ],
)
def test_broken_ops_are_reported(result, problem, monkeypatch):
    right = ops.linear_grad_sqnorm
    monkeypatch.setattr(ops, "linear_grad_sqnorm", lambda *args: result(right(*args)))
    assert problem in selftest.check("linear_grad_sqnorm", CPU, torch.float32).problem


def test_one_miscounted_entry_is_reported(monkeypatch):
    right = ops.fisher_mask_
    monkeypatch.setattr(ops, "fisher_mask_", lambda *args: right(*args) + 1)
    assert selftest.check("fisher_mask_", CPU, torch.bfloat16).problem


def test_every_case_is_of_an_op():
    assert cases.CASES.keys() == set(ops.__all__)
