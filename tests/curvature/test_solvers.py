import math

import pytest
import torch
from torch.nn import functional as F
from zoo import build

from unlearnx.curvature import CurvatureOperator, LiSSA


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
    batches = operator.minibatches(batch_size, torch.Generator().manual_seed(3))
    order = [next(batches) for _ in range(math.ceil(9 / batch_size))]

    def product(i, u):
        return list(order[i % len(order)].matvec(dict(zip(v, u, strict=True))).values())

    expected, diverged = published_lissa(product, list(v.values()), 9, batch_size, scale, damping, 20, depth)
    assert not diverged
    for name, e in zip(v, expected, strict=True):
        assert (solution.x[name] - e).norm() <= 1e-10 * e.norm()


def test_published_stopping_rule():
    """With noisy batches both stop at the same iteration."""
    operator, v = problem()
    batches = operator.minibatches(1, torch.Generator().manual_seed(0))
    order = [next(batches) for _ in range(9)]
    steps = []

    def product(i, u):
        steps.append(i)
        return list(order[i % 9].matvec(dict(zip(v, u, strict=True))).values())

    scale = 3 * operator.top_eigenvalue()
    published_lissa(product, list(v.values()), 9, 1, scale, 1e-3, 20, 500)
    solution = LiSSA(1e-3, scale, 1, 500, patience=20, seed=0).solve(operator, v)
    assert solution.iterations == len(steps) < 500


def test_auto_scale_converges_to_the_damped_solution():
    operator, v = problem()
    solution = LiSSA(damping=0.05, batch_size=None, recursion_depth=2000, patience=2000).solve(operator, v)
    assert solution.converged
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


def test_auto_scale_grows_until_batches_with_large_curvature_converge():
    """One sample in nine has a hundred times the curvature of the others: the mean says little about its batches."""
    model, x, y = build("mlp")
    x = x.clone()
    x[4] *= 30
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), params=["0.weight", "0.bias"])
    v = {k: torch.randn_like(model.get_parameter(k)) for k in operator.names}
    tops = [b.top_eigenvalue() for b, _ in zip(operator.minibatches(1), range(9), strict=False)]
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=0.0), "scale is 0.0, expected a number > 0 or 'auto'"),
        (dict(scale="big"), "scale is 'big'"),
        (dict(damping=-0.1), "damping is -0.1"),
        (dict(recursion_depth=0), "recursion_depth is 0"),
        (dict(batch_size=0), "batch_size is 0"),
    ],
)
def test_clear_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LiSSA(**options)
