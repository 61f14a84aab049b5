"""EK-FAC and K-FAC as solvers, and as preconditioners of the others."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.curvature import EKFAC, KFAC, ConjugateGradient, CurvatureOperator, Direct, Factors, LiSSA, NystromPCG
from unlearnx.methods import NewtonRepair, SecondOrder


def problem(damping=1e-4, **options):
    """A perceptron far from certain, on correlated inputs of unequal scales: hard for plain conjugate gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    for p in model[0].parameters():
        p.data *= 1e-3
    scales = torch.logspace(-1, 1, 40, dtype=torch.float64)
    x = torch.randn(400, 40, dtype=torch.float64) * scales @ torch.linalg.qr(torch.randn(40, 40).double())[0]
    operator = CurvatureOperator(model, F.cross_entropy, (x, torch.randint(4, (400,))), damping=damping, **options)
    return operator, {n: torch.randn_like(model.get_parameter(n)) for n in operator.names}


def several(v, k):
    return {n: torch.stack([t.roll(j) for j in range(k)]) for n, t in v.items()}


def relative(a, b):
    return float(sum((a[n] - b[n]).square().sum() for n in b) / sum(t.square().sum() for t in b.values())) ** 0.5


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_solves_with_the_smallest_residual(kind):
    """The answer is a multiple of the factors' own, the residual that of the true system."""
    operator, v = problem()
    solution = kind(fisher_type="exact").solve(operator, v)
    own = kind().fit(*operator.rows.problem(), fisher_type="exact").solve(v, 1e-4)
    factor = (solution.x["0.weight"] / own["0.weight"]).flatten()
    torch.testing.assert_close(factor, factor[:1].expand_as(factor))
    assert solution.residual == pytest.approx(relative(operator.matvec(solution.x), v))
    for other in (0.9, 1.1):
        assert relative(operator.matvec({n: other * t for n, t in solution.x.items()}), v) > solution.residual
    assert solution.iterations == 2
    many = kind(fisher_type="exact").solve(operator, several(v, 3))
    assert many.residual.shape == (3,)
    assert many.residual[0] == pytest.approx(solution.residual)


def test_one_linear_layer_is_solved_exactly_where_factors_are_exact():
    """With one sample the Fisher information of a linear layer is a Kronecker product."""
    model = nn.Linear(5, 3).double()
    operator = CurvatureOperator(model, F.cross_entropy, (torch.randn(1, 5).double(), torch.tensor([1])), damping=0.1)
    v = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    solution = EKFAC(fisher_type="exact").solve(operator, v)
    assert solution.residual < 1e-10
    assert relative(solution.x, Direct().solve(operator, v).x) < 1e-10


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("k", [None, 3])
def test_preconditioned_conjugate_gradients(kind, k):
    operator, v = problem()
    v = v if k is None else several(v, k)
    solution = ConjugateGradient(tolerance=1e-6, preconditioner=kind(fisher_type="exact")).solve(operator, v)
    assert solution.converged
    assert relative(solution.x, Direct().solve(operator, v).x) < 1e-4
    plain = ConjugateGradient(tolerance=1e-6, iterations=4 * len(solution.history)).solve(operator, v)
    assert not plain.converged


@pytest.mark.parametrize("batch_size", [None, 200])
def test_preconditioned_lissa(batch_size):
    operator, v = problem()
    settings = dict(damping=0.0, batch_size=batch_size, recursion_depth=300, patience=300)
    plain = LiSSA(**settings).solve(operator, v)
    fast = LiSSA(**settings, preconditioner=EKFAC(fisher_type="exact")).solve(operator, several(v, 2))
    assert fast.residual[0] < plain.residual
    if batch_size is None:
        assert fast.residual[0] < plain.residual / 3
        expected = Direct().solve(operator, v).x
        assert relative(fast.part(0).x, expected) < relative(plain.x, expected) / 3


def test_preconditioned_lissa_converges():
    """Over all the data it stops where the residual has the tolerance, for each right-hand side by itself."""
    operator, v = problem(damping=0.1)
    lissa = LiSSA(batch_size=None, recursion_depth=300, preconditioner=EKFAC(fisher_type="exact"))
    solution = lissa.solve(operator, several(v, 3))
    assert solution.converged
    assert max(solution.residual) <= 1e-2
    assert relative(solution.part(1).x, Direct().solve(operator, several(v, 3)).part(1).x) < 0.1


def test_factors_fitted_before():
    """Factors of the model as it was, read from nowhere else, still make a preconditioner; those of another do not."""
    operator, v = problem()
    factors = EKFAC(fisher_type="exact").fit(*operator.rows.problem())
    solution = ConjugateGradient(tolerance=1e-6, preconditioner=factors).solve(operator, v)
    fresh = ConjugateGradient(tolerance=1e-6, preconditioner=EKFAC(fisher_type="exact")).solve(operator, v)
    assert solution.converged
    assert solution.iterations == fresh.iterations - 1
    last, _ = problem(params="last:2")
    message = r"factors are those of 0\.weight, .*, expected those of 2\.weight, 2\.bias"
    with pytest.raises(ValueError, match=message):
        ConjugateGradient(preconditioner=factors).solve(last, {n: v[n] for n in last.names})


def test_bad_arguments():
    operator, v = problem(damping=0.0)
    for solver in (EKFAC(), ConjugateGradient(preconditioner=KFAC()), LiSSA(preconditioner=EKFAC())):
        with pytest.raises(ValueError, match="the operator's damping is 0, expected a number > 0"):
            solver.solve(operator, v)
    for kind in (ConjugateGradient, LiSSA):
        with pytest.raises(TypeError, match=r"preconditioner is 3, expected EKFAC\(\), KFAC\(\), Factors or None"):
            kind(preconditioner=3)
    with pytest.raises(ValueError, match=r"damping is 0\.01, expected 0 with a preconditioner"):
        LiSSA(damping=0.01, preconditioner=EKFAC())
    for method in (SecondOrder, NewtonRepair):
        with pytest.raises(ValueError, match=r"damping is 0\.0, expected a number above zero, or None, for NystromPCG"):
            method(solver=NystromPCG(), damping=0.0)


NEEDING_DAMPING = [
    EKFAC(),
    ConjugateGradient(preconditioner=EKFAC()),
    LiSSA(batch_size=None, preconditioner=EKFAC()),
    NystromPCG(rank=5),
]


@pytest.mark.parametrize("solver", NEEDING_DAMPING, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("method", [SecondOrder, NewtonRepair])
def test_methods_find_the_damping_that_a_solver_needs(solver, method, monkeypatch):
    """It is a hundredth of the largest eigenvalue of the curvature, where none is given."""
    torch.manual_seed(0)
    x = torch.randn(90, 8)
    y = x[:, :3].argmax(1)
    model, dampings, solve = nn.Linear(8, 3), [], type(solver).solve
    monkeypatch.setattr(type(solver), "solve", lambda *args: dampings.append(args[1].damping) or solve(*args))
    request = Request.remove((x, y), range(6))
    outcomes = [method(solver=solver, steps=1)(model, request)]
    if method is SecondOrder:
        outcomes += method(solver=solver, steps=1).many(model, [request, request])
    assert all(outcome.info["steps"][0]["residual"] < 1 for outcome in outcomes)
    kept = request.retain_set if method is SecondOrder else (x, y)
    largest = CurvatureOperator(model, F.cross_entropy, kept).top_eigenvalue()
    assert dampings[0] == pytest.approx(largest / 100, rel=0.02)
    method(solver=solver, damping=0.1, steps=1)(model, request)
    assert dampings[-1] == 0.1


def test_without_curvature_there_is_no_damping():
    x, y = torch.zeros(90, 8), torch.arange(90) % 3
    outcome = SecondOrder(EKFAC(), params=["weight"])(nn.Linear(8, 3), Request.remove((x, y), range(6)))
    assert not outcome.applied
    assert "the curvature of what stays is zero" in outcome.reason


def test_right_hand_side_of_zero():
    operator, v = problem()
    zero = {n: torch.zeros_like(t) for n, t in v.items()}
    for solver in (EKFAC(), ConjugateGradient(preconditioner=EKFAC())):
        solution = solver.solve(operator, zero)
        assert solution.residual == 0
        assert solution.iterations == 0
    assert isinstance(EKFAC().fit(*operator.rows.problem()), Factors)
