import math

import pytest
import torch
from torch.nn import functional as F

from tests.curvature.zoo import build
from tests.helpers import product_of
from unlearnx.curvature import ConjugateGradient, CurvatureOperator, Direct, IndefiniteSystem, LiSSA, NystromPCG
from unlearnx.models import digits_cnn


def flat(vector):
    return torch.cat([t.flatten() for t in vector.values()])


def problem(kind="ggn", **options):
    model, x, y = build("mlp")
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, **options)
    return operator, {k: torch.randn_like(p) for k, p in model.named_parameters()}


def published_lissa(product, v, n, batch_size, scale, damping, patience, depth):
    """Transcription of the published iteration (Warnecke et al., public code) in float64.

    `product(i, u)` is the curvature product of iteration i. Returns h / scale and whether it diverged.
    """
    u, update_min, i = [t.clone() for t in v], [math.inf, -1], 0
    while i < depth and torch.linalg.norm(u[0]).isfinite():
        hvps = product(i, u)
        new = [a + (1 - damping) * b - c / scale for a, b, c in zip(v, u, hvps, strict=True)]
        update_norm = sum((old - t).abs().sum().item() for old, t in zip(u, new, strict=True))
        if update_norm > update_min[0] and update_min[-1] >= patience:
            i = depth + 1 if i < patience else depth
        if update_norm < update_min[0]:
            update_min = [update_norm, 1]
        update_min[-1] += 1
        i, u = i + 1, new
    return [t / scale for t in u], i == depth + 2 or not all(t.isfinite().all() for t in u)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("batch_size", [9, 3])
def test_published_iteration(batch_size, kind):
    operator, v = problem(kind)
    scale, damping, depth = 2.0, 1e-2, 60
    solution = LiSSA(damping, scale, batch_size, depth, patience=20, seed=3).solve(operator, v)
    batches = operator.rows.minibatches(batch_size, torch.Generator().manual_seed(3))
    order = [next(batches) for _ in range(math.ceil(9 / batch_size))]

    def product(i, u):
        return list(product_of(order[i % len(order)], dict(zip(v, u, strict=True))).values())

    expected, diverged = published_lissa(product, list(v.values()), 9, batch_size, scale, damping, 20, depth)
    assert not diverged
    for name, e in zip(v, expected, strict=True):
        assert (solution.x[name] - e).norm() <= 1e-10 * e.norm()


def test_published_stopping_rule():
    """With noisy batches both stop at the same iteration."""
    operator, v = problem()
    batches = operator.rows.minibatches(1, torch.Generator().manual_seed(0))
    order = [next(batches) for _ in range(9)]
    steps = []

    def product(i, u):
        steps.append(i)
        return list(product_of(order[i % 9], dict(zip(v, u, strict=True))).values())

    scale = 3 * operator.top_eigenvalue()
    published_lissa(product, list(v.values()), 9, 1, scale, 1e-3, 20, 500)
    solution = LiSSA(1e-3, scale, 1, 500, patience=20, seed=0).solve(operator, v)
    assert solution.iterations == len(steps) < 500


def test_auto_scale_converges_to_the_damped_solution():
    operator, v = problem()
    solution = LiSSA(damping=0.05, batch_size=None, recursion_depth=2000, patience=2000, tolerance=1e-7).solve(
        operator, v
    )
    assert solution.converged
    assert solution.iterations < 2000
    assert solution.residual < 1e-6
    size = flat(v).numel()
    identity = torch.eye(size, dtype=torch.float64)
    columns = []
    for e in identity:
        parts = dict(zip(v, e.split([t.numel() for t in v.values()]), strict=True))
        columns.append(flat(operator.matvec({k: parts[k].view(v[k].shape) for k in v})))
    expected = torch.linalg.solve(torch.stack(columns) + 0.05 * solution.scale * identity, flat(v))
    torch.testing.assert_close(flat(solution.x), expected, rtol=1e-5, atol=1e-8)


def test_residual_is_what_it_says():
    operator, v = problem(damping=0.1)
    solution = LiSSA(damping=0.02, scale=1.5, batch_size=None, recursion_depth=7).solve(operator, v)
    image = operator.matvec(solution.x)
    rest = flat(image) + 0.02 * 1.5 * flat(solution.x) - flat(v)
    assert solution.residual == pytest.approx((rest.norm() / flat(v).norm()).item())
    assert solution.iterations == len(solution.history) == 7
    assert not solution.converged


def test_divergence_is_reported():
    operator, v = problem()
    scale = 0.1 * operator.top_eigenvalue()
    short = LiSSA(0.0, scale, None, 15).solve(operator, v)
    assert short.diverged
    assert not short.converged
    long = LiSSA(0.0, scale, None, 5000, patience=5000).solve(operator, v)
    assert long.diverged
    assert not math.isfinite(long.history[-1])
    assert long.stopped == f"not finite at iteration {long.iterations}"


def test_auto_scale_grows_until_batches_with_large_curvature_converge():
    """One sample in nine has a hundred times the curvature of the others: the mean says little about its batches."""
    model, x, y = build("mlp")
    x = x.clone()
    x[4] *= 30
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), params=["0.weight", "0.bias"])
    v = {k: torch.randn_like(model.get_parameter(k)) for k in operator.names}
    tops = [b.spectrum().largest for b, _ in zip(operator.rows.minibatches(1), range(9), strict=False)]
    assert max(tops) > 2 * 1.1 * operator.top_eigenvalue()
    solution = LiSSA(damping=0.05, batch_size=1, recursion_depth=200, patience=200).solve(operator, v)
    assert not solution.diverged
    assert solution.scale > 2 * operator.top_eigenvalue()


def test_repetitions_are_averaged():
    operator, v = problem()
    one = [LiSSA(0.05, 2.0, 3, 30, seed=0).solve(operator, v)]
    many = LiSSA(0.05, 2.0, 3, 30, num_repeat=4, seed=0).solve(operator, v)
    assert many.iterations == 4 * one[0].iterations
    assert many.residual < one[0].residual


def test_zero_right_hand_side():
    operator, v = problem()
    solution = LiSSA().solve(operator, {k: torch.zeros_like(t) for k, t in v.items()})
    assert solution.converged
    assert flat(solution.x).abs().max() == 0


def network(dtype=torch.float64, **options):
    """A network of 2,003 parameters on 300 samples of very unequal features."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 27), torch.nn.Tanh())
    model.append(torch.nn.Linear(27, 2)).to(dtype)
    x = torch.randn(300, 20, dtype=dtype) * torch.logspace(0, -1, 20, dtype=dtype)
    y = (x[:, 0] + 0.3 * x[:, 1] > 0).long()
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), **options)
    return operator, {k: torch.randn_like(p) for k, p in model.named_parameters()}


def stacked(v, count):
    torch.manual_seed(1)
    return {k: torch.randn(count, *t.shape, dtype=t.dtype) for k, t in v.items()}


SOLVERS = {
    "cg": ConjugateGradient(tolerance=1e-6, iterations=500),
    "nystrom": NystromPCG(tolerance=1e-6, iterations=500, rank=30),
    "lissa": LiSSA(damping=0.0, batch_size=None, recursion_depth=20_000, tolerance=1e-5),
}


@pytest.mark.parametrize("count", [None, 1, 4])
@pytest.mark.parametrize("name", SOLVERS)
def test_all_agree_with_the_dense_matrix(name, count):
    operator, v = network(damping=1e-2)
    assert sum(t.numel() for t in v.values()) == 2_003
    v = v if count is None else stacked(v, count)
    expected = Direct().solve(operator, v)
    assert expected.converged
    assert torch.as_tensor(expected.residual).max() < 1e-10
    assert expected.iterations == 2_003
    solution = SOLVERS[name].solve(operator, v)
    assert solution.converged, solution.stopped
    assert (flat(solution.x) - flat(expected.x)).norm() <= 1e-4 * flat(expected.x).norm()
    if count is not None:
        assert solution.residual.shape == (count,)
        assert len(solution) == len(solution.history[-1]) == count
        part = solution.part(count - 1)
        assert part.converged
        assert part.x.keys() == v.keys()
        assert part.residual == solution.residual[-1]
        assert part.history[-1] == solution.history[-1][-1] or math.isnan(part.history[-1])


@pytest.mark.parametrize(
    "solver", [ConjugateGradient(), NystromPCG(), LiSSA(damping=0.02, batch_size=None), LiSSA(batch_size=64)]
)
def test_residual_is_that_of_the_system(solver):
    operator, v = network(damping=1e-2)
    v = stacked(v, 3)
    solution = solver.solve(operator, v)
    extra = solution.scale * (solver.damping or 1e-2) if isinstance(solver, LiSSA) else 0.0
    for k in range(3):
        x = {name: t[k] for name, t in solution.x.items()}
        b = flat({name: t[k] for name, t in v.items()})
        rest = flat(operator.matvec(x)) + extra * flat(x) - b
        assert solution.residual[k].item() == pytest.approx((rest.norm() / b.norm()).item(), rel=1e-6)
    assert solution.converged == bool((solution.residual <= solver.tolerance).all())


def test_float32():
    operator, v = network(torch.float32, damping=1e-2)
    for solver in (ConjugateGradient(), NystromPCG()):
        solution = solver.solve(operator, stacked(v, 3))
        assert solution.converged
        assert all(t.dtype == torch.float32 for t in solution.x.values())


def test_block_needs_fewer_iterations():
    operator, v = network(damping=1e-3)
    v = stacked(v, 8)
    alone = [ConjugateGradient().solve(operator, {k: t[j] for k, t in v.items()}) for j in range(8)]
    assert all(s.converged for s in alone)
    together = ConjugateGradient().solve(operator, v)
    assert together.converged
    assert len(together.history) < max(len(s.history) for s in alone)
    assert together.iterations < sum(s.iterations for s in alone)


def test_equal_and_zero_right_hand_sides():
    operator, v = network(damping=1e-2)
    v = {k: torch.stack([t, 2 * t, torch.zeros_like(t), t]) for k, t in v.items()}
    for solver in (ConjugateGradient(), NystromPCG(), Direct(), LiSSA(batch_size=None)):
        solution = solver.solve(operator, v)
        assert solution.converged
        assert solution.residual[2] == 0
        for t in solution.x.values():
            torch.testing.assert_close(t[1], 2 * t[0])
            torch.testing.assert_close(t[3], t[0])
            assert t[2].abs().max() == 0


@pytest.mark.parametrize("order", [[0, 0, 1, 0, 2], [0, 1, 3, 2], [3, 0, 1, 2, 2]])
def test_dependent_right_hand_sides(order):
    """Linearly dependent right-hand sides take no more iterations than independent ones."""
    operator, v = network(damping=1e-3)
    rows = stacked(v, 3)
    rows = {k: torch.cat([t, t[:1] + t[1:2]]) for k, t in rows.items()}
    for solver in (ConjugateGradient(tolerance=1e-6), NystromPCG(tolerance=1e-6)):
        basis = solver.solve(operator, {k: t[:3] for k, t in rows.items()})
        solution = solver.solve(operator, {k: t[order] for k, t in rows.items()})
        assert solution.converged
        assert len(solution.history) <= len(basis.history) + 2


def test_preconditioner_pays():
    operator, v = network(damping=1e-4)
    plain = ConjugateGradient(iterations=1000, tolerance=1e-6).solve(operator, v)
    preconditioned = NystromPCG(rank=60, iterations=1000, tolerance=1e-6).solve(operator, v)
    assert plain.converged
    assert preconditioned.converged
    assert len(preconditioned.history) < len(plain.history) / 2


@pytest.mark.parametrize(
    "solver", [ConjugateGradient(tolerance=1e-6), NystromPCG(), Direct(), LiSSA(damping=0.0, batch_size=None)]
)
def test_indefinite_systems_are_refused(solver):
    operator, v = network(kind="hessian", damping=1e-6)
    smallest = operator.smallest_eigenvalue(tolerance=1e-6)
    assert smallest < -1e-3
    with pytest.raises(IndefiniteSystem, match="not positive definite, it has the eigenvalue -") as caught:
        solver.solve(operator, v)
    assert caught.value.eigenvalue == pytest.approx(smallest, rel=0.05)
    mended, _ = network(kind="hessian", damping=caught.value.damping)
    assert type(solver)().solve(mended, v).residual < 0.9


@pytest.mark.parametrize(
    "solver", [ConjugateGradient(), NystromPCG(), LiSSA(scale=1.0, batch_size=None), LiSSA(), Direct()]
)
def test_not_finite(solver):
    operator, v = network(damping=1e-2)
    operator.rows.model[0].weight.data[0, 0] = math.nan
    solution = solver.solve(operator, v)
    assert solution.diverged
    assert not solution.converged
    assert ("not finite" if isinstance(solver, Direct) else "not finite at iteration 1") in solution.stopped


@pytest.mark.parametrize("count", [1, 3])
def test_lissa_of_many_is_that_of_each(count):
    """With batches and the published stopping rule, whichever iteration each of them stops at."""
    operator, v = network()
    v = stacked(v, count)
    solver = LiSSA(damping=0.0, scale=0.3, batch_size=30, recursion_depth=200)
    together = solver.solve(operator, v)
    for k in range(count):
        alone = solver.solve(operator, {name: t[k] for name, t in v.items()})
        torch.testing.assert_close({name: t[k] for name, t in together.x.items()}, alone.x)
        assert [h for h in together.part(k).history if not math.isnan(h)] == pytest.approx(alone.history)


def test_no_number_was_tuned():
    """Default solvers on a digits network: each reaches its tolerance, or says that it did not."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    torch.manual_seed(0)
    x, y = torch.tensor(data.images[:500], dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target[:500])
    model = digits_cnn()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(8):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    operator = CurvatureOperator(model.eval(), F.cross_entropy, (x, y), damping=0.1)
    gradient = torch.autograd.grad(F.cross_entropy(model(x), (y + 1) % 10), list(model.parameters()))
    v = dict(zip(operator.names, gradient, strict=True))
    for solver in (ConjugateGradient(), NystromPCG(), LiSSA(batch_size=None)):
        solution = solver.solve(operator, v)
        assert solution.converged, solution.stopped
        assert solution.residual <= 1e-2
    noisy = LiSSA(batch_size=128, recursion_depth=50).solve(operator, v)
    assert noisy.converged == (noisy.residual <= 1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=0.0), "scale is 0.0, expected a finite number > 0 or 'auto'"),
        (dict(scale=1e300), "scale is 1e.300, expected a finite number"),
        (dict(scale="big"), "scale is 'big'"),
        (dict(damping=-0.1), "damping is -0.1"),
        (dict(recursion_depth=0), "recursion_depth is 0"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(tolerance=0.0), "tolerance is 0.0, expected a number between 0 and 1"),
    ],
)
def test_clear_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LiSSA(**options)


def test_what_is_no_vector_or_operator():
    operator, v = problem()
    with pytest.raises(TypeError, match=r"^v is of type tuple, expected a mapping of names"):
        ConjugateGradient().solve(operator, tuple(v.values()))
    with pytest.raises(TypeError, match=r"^operator is "):
        Direct().solve(torch.nn.Linear(2, 2), v)


def test_more_clear_errors():
    operator, v = problem()
    for solver in (ConjugateGradient, NystromPCG):
        with pytest.raises(ValueError, match="iterations is 0"):
            solver(iterations=0)
    with pytest.raises(ValueError, match="rank is 0"):
        NystromPCG(rank=0)
    with pytest.raises(ValueError, match="the operator's damping is 0"):
        NystromPCG().solve(operator, v)
    with pytest.raises(ValueError, match="v: has values that are NaN"):
        ConjugateGradient().solve(operator, {k: t * math.nan for k, t in v.items()})
    with pytest.raises(ValueError, match=r"has shape \[5\], expected \[5, 6\], or \[K, 5, 6\] for K vectors"):
        ConjugateGradient().solve(operator, {**v, "0.weight": v["0.bias"]})
    model = torch.nn.Linear(2000, 10)
    large = CurvatureOperator(model, F.cross_entropy, (torch.randn(2, 2000), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"Direct: 20,010 parameters make a matrix of 2.98 GiB"):
        Direct().solve(large, {k: torch.ones_like(p) for k, p in model.named_parameters()})
