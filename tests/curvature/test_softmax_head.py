import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import product_of
from unlearnx import Request
from unlearnx.curvature import ConjugateGradient, CurvatureOperator, LiSSA, rows, shared_state, softmax_head
from unlearnx.methods import SecondOrder
from unlearnx.ops import lissa_softmax_linear, softmax_linear_hvp

N, FEATURES, CLASSES = 50, 6, 4


def generic(output, y):
    """The cross entropy in a function that is not recognised, so that the generic operator is used."""
    return F.cross_entropy(output, y)


def data(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(N, FEATURES, dtype=dtype), torch.randint(CLASSES, (N,))


MODELS = {
    "layer": (lambda: nn.Linear(FEATURES, CLASSES), None),
    "no bias": (lambda: nn.Linear(FEATURES, CLASSES, bias=False), None),
    "behind a prefix": (lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)), "last:2"),
    "no bias, behind a prefix": (
        lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.Flatten(), nn.Linear(5, CLASSES, bias=False)),
        "last:1",
    ),
}


def both(name="layer", dtype=torch.float64, loss_fn=F.cross_entropy, **options):
    """The operator in closed form and the generic one, and three vectors."""
    make, params = MODELS[name]
    x, y = data(dtype)
    model = make().to(dtype)
    ours, theirs = (
        CurvatureOperator(model, loss, (x, y), params=params, **options)  # of the same model
        for loss in (loss_fn, generic)
    )
    return ours, theirs, {k: torch.randn(3, *model.get_parameter(k).shape, dtype=dtype) for k in ours.names}


@pytest.fixture
def calls(monkeypatch):
    """Names of the ops that are called, one by one."""
    names = []

    def counted(op):
        def run(*args, **kwargs):
            names.append(op.__name__)
            return op(*args, **kwargs)

        return run

    for op in (softmax_linear_hvp, lissa_softmax_linear):
        monkeypatch.setattr(softmax_head, op.__name__, counted(op))
    return names


def close(a, b, tolerance=1e-10):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape
        assert a[name].dtype == b[name].dtype
        assert (a[name] - b[name]).norm() <= tolerance * b[name].norm(), name


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", MODELS)
def test_products(name, kind, batch_size, calls):
    ours, theirs, v = both(name, kind=kind, batch_size=batch_size, damping=0.1)
    for _ in range(2):  # newly computed, then kept
        close(ours.matmat(v), theirs.matmat(v))
    close(ours.matvec({k: t[0] for k, t in v.items()}), theirs.matvec({k: t[0] for k, t in v.items()}))
    assert ours.evaluations == theirs.evaluations
    assert len(calls) == 3 * (1 if batch_size is None else math.ceil(N / batch_size))


def test_products_with_minibatches(calls):
    ours, theirs, v = both()
    batches = [operator.rows.minibatches(16, torch.Generator().manual_seed(1)) for operator in (ours, theirs)]
    for _ in range(6):
        a, b = map(next, batches)
        assert len(a) == len(b)
        close(product_of(a, v), product_of(b, v))
    assert len(calls) == 6


SOLVERS = {
    "auto, all": LiSSA(batch_size=None, tolerance=1e-4),
    "auto, batches": LiSSA(batch_size=16, recursion_depth=50, patience=3),
    "published": LiSSA(damping=0.02, scale=1.5, batch_size=16, recursion_depth=70, patience=4),
    "all": LiSSA(scale=2.0, batch_size=None, recursion_depth=30),
    "repeated": LiSSA(scale=2.0, batch_size=16, num_repeat=3, seed=5),
    "one sample": LiSSA(scale=9.0, batch_size=1, recursion_depth=60),
    "more than there are": LiSSA(scale=2.0, batch_size=1000),
    "diverging": LiSSA(damping=0.0, scale=0.05, batch_size=None, recursion_depth=15),
    "overflowing": LiSSA(damping=0.0, scale=1e-4, batch_size=None, recursion_depth=500, patience=500),
}


def same_solutions(ours, theirs, v, solver, tolerance=1e-10):
    a, b = solver.solve(ours, v), solver.solve(theirs, v)
    assert (a.iterations, a.stopped, a.converged) == (b.iterations, b.stopped, b.converged)
    assert (ours.evaluations, a.scale) == (theirs.evaluations, pytest.approx(b.scale, rel=tolerance))
    approximately = dict(rtol=tolerance, atol=tolerance, equal_nan=True)
    for key in ("residual", "history"):
        torch.testing.assert_close(torch.tensor(getattr(a, key)), torch.tensor(getattr(b, key)), **approximately)
    if all(t.isfinite().all() for t in b.x.values()):
        close(a.x, b.x, tolerance)
    return b


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["layer", "no bias, behind a prefix"])
def test_lissa(name, solver, count, calls):
    ours, theirs, v = both(name, damping=0.05)
    v = v if count else {k: t[0] for k, t in v.items()}
    same_solutions(ours, theirs, v, SOLVERS[solver])
    assert ("lissa_softmax_linear" in calls) == (
        solver != "auto, all"
    )  # it stops by the residual, which the op does not know


def test_float32(calls):
    ours, theirs, v = both(dtype=torch.float32)
    close(ours.matmat(v), theirs.matmat(v), 1e-5)
    solver = LiSSA(scale=2.0, batch_size=16, recursion_depth=40, patience=40)
    close(solver.solve(ours, v).x, solver.solve(theirs, v).x, 1e-5)
    assert calls.count("lissa_softmax_linear") == 1


def test_other_solvers(calls):
    ours, theirs, v = both(damping=0.01)
    solver = ConjugateGradient(tolerance=1e-9)
    close(solver.solve(ours, v).x, solver.solve(theirs, v).x, 1e-7)
    assert calls


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_updates_of_zero(calls):
    """A right-hand side that converges in one iteration stops; the others go on with the same batches."""
    ours, theirs, v = both()
    v = {k: torch.stack([t[0], torch.zeros_like(t[0]), t[1]]) for k, t in v.items()}
    same_solutions(ours, theirs, v, LiSSA(scale=2.0, batch_size=16))
    assert "lissa_softmax_linear" not in calls
    # Directions of features that are zero in every sample: the curvature of every batch is zero along them.
    x, y = data()
    x[:, 0] = 0
    ours, theirs = (
        CurvatureOperator(nn.Linear(6, 4, bias=False).double(), f, (x, y)) for f in (F.cross_entropy, generic)
    )
    v = {"weight": torch.zeros(4, 6, dtype=torch.float64)}
    v["weight"][1, 0] = 1
    same_solutions(ours, theirs, v, LiSSA(damping=0.0, scale=2.0, batch_size=16, recursion_depth=30))
    assert calls.count("lissa_softmax_linear") == 1


def test_memory(calls, monkeypatch):
    ours, theirs, v = both()
    solver = LiSSA(scale=2.0, batch_size=16)
    expected, solution = theirs.matmat(v), solver.solve(theirs, v)
    monkeypatch.setattr(
        softmax_head, "MAX_WORKSPACE_BYTES", 2 * 16 * CLASSES * 8
    )  # two vectors at once, or one with all samples
    close(ours.matmat(v), expected)
    close(solver.solve(ours, v).x, solution.x)
    assert calls == ["softmax_linear_hvp"] * 3 + ["lissa_softmax_linear"] * 2 + ["softmax_linear_hvp"] * 3
    calls.clear()
    monkeypatch.setattr(shared_state, "KEPT_MEMORY_FRACTION", 0.0)
    ours, _, _ = both()
    close(ours.matmat(v), expected)
    close(solver.solve(ours, v).x, solution.x)
    assert set(calls) == {"softmax_linear_hvp"}


def test_a_changed_model_is_noticed(calls):
    ours, theirs, v = both()
    solver = LiSSA(scale=2.0, batch_size=16)
    before = ours.matmat(v), solver.solve(ours, v).x
    ours.rows.model.weight.data.mul_(3)
    after = ours.matmat(v), solver.solve(ours, v).x
    for a, b, e in zip(after, before, (theirs.matmat(v), solver.solve(theirs, v).x), strict=True):
        close(a, e)
        assert (a["weight"] - b["weight"]).norm() > 1e-3 * b["weight"].norm()


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def patched():
    linear = nn.Linear(6, 4)
    linear.forward = lambda x: 2 * F.linear(x, linear.weight, linear.bias)
    return linear


REFUSED = {
    "class weights": dict(loss_fn=nn.CrossEntropyLoss(torch.arange(4.0, dtype=torch.float64), reduction="sum")),
    "label smoothing": dict(loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "another label is ignored": dict(loss_fn=nn.CrossEntropyLoss(ignore_index=2, reduction="sum")),
    "another loss": dict(loss_fn=generic),
    "a hook on the loss": dict(loss_fn=hooked(nn.CrossEntropyLoss())),
    "two layers": dict(model=lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))),
    "two layers behind a prefix": dict(
        model=lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)), params="last:4"
    ),
    "another layer": dict(model=lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5)), params="last:2"),
    "more than the layer": dict(model=lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh())),
    "more than the layer behind a prefix": dict(
        model=lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Tanh()), params="last:2"
    ),
    "frozen bias": dict(params=["weight"]),
    "frozen bias behind a prefix": dict(
        model=lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), params=["1.weight"]
    ),
    "frozen weight": dict(params=["bias"]),
    "a derived class": dict(model=lambda: Scaled(6, 4)),
    "a forward of its own": dict(model=patched),
    "parametrised": dict(model=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))),
    "a hook": dict(model=lambda: hooked(nn.Linear(6, 4))),
    "a hook behind a prefix": dict(
        model=lambda: nn.Sequential(nn.Linear(6, 5), hooked(nn.Linear(5, 4))), params="last:2"
    ),
    "3-d inputs": dict(x=lambda x: x[:, None].expand(-1, 4, -1), y=lambda y: y[:, None].expand(-1, 4)),
    "half precision": dict(model=lambda: nn.Linear(6, 4).bfloat16(), x=lambda x: x.bfloat16()),
    "probabilities": dict(y=lambda y: F.one_hot(y, CLASSES).double()),
    "an ignored label": dict(
        y=lambda y: torch.where(torch.arange(N) == 5, -100, y), plain=nn.CrossEntropyLoss(reduction="none")
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case, calls):
    """Everything else goes to the generic operator, with the same results."""
    given = REFUSED[case]
    x, y = data()
    model = given.get("model", lambda: nn.Linear(6, 4))()
    model = model if case == "half precision" else model.double()
    x = given.get("x", lambda x: x)(x)
    y = given.get("y", lambda y: y)(y)
    loss_fn = given.get("loss_fn", F.cross_entropy)
    ours, theirs = (
        CurvatureOperator(model, loss, (x, y), params=given.get("params"), batch_size=4)
        for loss in (loss_fn, lambda output, y: given.get("plain", loss_fn)(output, y))
    )
    v = {k: torch.randn(2, *model.get_parameter(k).shape, dtype=model.get_parameter(k).dtype) for k in ours.names}
    tolerance = 0 if case == "half precision" else 1e-10
    close(ours.matmat(v), theirs.matmat(v), tolerance)
    solver = LiSSA(scale=20.0, batch_size=16, recursion_depth=5)
    close(solver.solve(ours, v).x, solver.solve(theirs, v).x, tolerance)
    assert (case == "an ignored label") == bool(calls)  # the closed form still serves batches without an ignored label
    assert "lissa_softmax_linear" not in calls


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (lambda x: x.float(), lambda y: y),
        (lambda x: x[:, :5], lambda y: y),
        (lambda x: x, lambda y: y + 1),
        (lambda x: x, lambda y: y[:, None]),
    ],
)
def test_errors_do_not_depend_on_the_closed_form(x, y, calls):
    given = data()
    messages = []
    for loss_fn in (F.cross_entropy, generic):
        with pytest.raises(ValueError, match="data: expected") as caught:
            CurvatureOperator(nn.Linear(6, 4).double(), loss_fn, (x(given[0]), y(given[1])))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not calls


def test_autocast(calls):
    ours, theirs, v = both(dtype=torch.float32)
    with torch.autocast("cpu"):
        close(ours.matmat(v), theirs.matmat(v), 0)
    assert not calls


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_recognises_the_module(reduction, calls):
    ours, theirs, v = both(loss_fn=nn.CrossEntropyLoss(reduction=reduction))
    close(ours.matmat(v), theirs.matmat(v))
    assert calls


def test_several_processes(calls, monkeypatch):
    ours, theirs, v = both()
    monkeypatch.setattr(rows.distributed, "processes", lambda: 2)
    monkeypatch.setattr(rows.distributed, "all_reduce_", list)  # as if the other process had no samples
    # Torch itself differentiates the loss that is not recognised, and may round the last digit differently.
    close(ours.matmat(v), theirs.matmat(v), 1e-14)
    solver = LiSSA(scale=2.0, batch_size=16)
    close(solver.solve(ours, v).x, solver.solve(theirs, v).x, 1e-14)
    assert not calls


@pytest.mark.parametrize("solver", [SecondOrder().solver, LiSSA(batch_size=64), ConjugateGradient(tolerance=1e-8)])
def test_second_order(solver, calls):
    torch.manual_seed(0)
    y = torch.randint(3, (200,))
    x = 3 * torch.eye(3, 6, dtype=torch.float64)[y] + torch.randn(200, 6, dtype=torch.float64)
    given = torch.where(torch.arange(200) < 40, (y + 1) % 3, y)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), given).backward()
        optimizer.step()
    model.zero_grad()
    model.eval()
    request = Request.correct((x, given), (x, y))
    method = SecondOrder(solver, params="last:2", damping=1e-3)
    ours = method(copy.deepcopy(model), request)
    assert calls
    assert ("lissa_softmax_linear" in calls) == (solver == LiSSA(batch_size=64))
    calls.clear()
    theirs = dataclasses.replace(method, loss_fn=generic)(model, request)
    assert not calls
    assert ours.applied
    close(ours.model.state_dict(), theirs.model.state_dict(), 1e-6)
    for a, b in zip(ours.info["steps"], theirs.info["steps"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"])
        assert all(a[key] == b[key] for key in ("points", "step", "converged"))
    if isinstance(solver, LiSSA):
        assert ours.gradient_evaluations == theirs.gradient_evaluations
        for a, b in zip(ours.info["steps"], theirs.info["steps"], strict=True):
            assert all(a[key] == b[key] for key in ("iterations", "solver"))
    else:
        # Down to 1e-8, conjugate gradients take more iterations than the 51 unknowns: rounding decides which one is the
        # last, and that differs between processors. The samples of everything but these iterations are the same.
        others = [
            outcome.gradient_evaluations - len(y) * sum(step["iterations"] for step in outcome.info["steps"])
            for outcome in (ours, theirs)
        ]
        assert others[0] == others[1]
    calls.clear()
    together = method.many(model, [request, request])
    assert calls
    for outcome in together:
        close(outcome.model.state_dict(), ours.model.state_dict(), 1e-6)
