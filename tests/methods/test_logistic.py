import pytest
import torch
from torch.nn import functional as F

from unlearnx.methods.design_matrix import as_design
from unlearnx.methods.logistic import Objective, conjugate_gradients, loss_of


def scores(classes, n=50, k=3):
    columns = 1 if classes == 2 else classes
    return torch.randn(n, k, columns, dtype=torch.float64) * 2, torch.randint(classes, (n,))


def row_loss(z, y, classes):
    """The same by torch's losses, of one row's scores (C,)."""
    if classes == 2:
        return F.binary_cross_entropy_with_logits(z[0], y.double())
    return F.cross_entropy(z, y)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_derivatives_of_the_losses(classes):
    loss = loss_of(classes)
    z, y = scores(classes)
    u = torch.randn_like(z)
    p = loss.probabilities(z)
    for i in range(4):
        for k in range(z.shape[1]):
            function = lambda t, i=i: row_loss(t, y[i], classes)  # noqa: E731
            torch.testing.assert_close(loss.value(z, y)[i, k], function(z[i, k]))
            torch.testing.assert_close(loss.residual(p, y)[i, k], torch.func.grad(function)(z[i, k]))
            torch.testing.assert_close(
                loss.hessian_product(loss.hessian_weights(p), u)[i, k], torch.func.hessian(function)(z[i, k]) @ u[i, k]
            )


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_remainder_bounds_what_a_change_of_scores_leaves(classes):
    """Over scores far from and near each other, and changes of every size; and is no more than 4 times too large."""
    loss = loss_of(classes)
    largest = 0.0
    for spread in (0.1, 1.0, 3.0, 10.0):
        for size in (1e-2, 0.3, 1.0, 5.0):
            z, y = scores(classes, 2000, 1)
            z, u = spread * z, size * torch.randn_like(z)
            before, after = loss.probabilities(z), loss.probabilities(z + u)
            left = (
                loss.residual(after, y)
                - loss.residual(before, y)
                - loss.hessian_product(loss.hessian_weights(before), u)
            ).norm(dim=2)
            bound = loss.remainder(u)
            assert (left <= bound).all()
            assert (bound <= u.norm(dim=2).square() / 4).all()
            largest = max(largest, float((left / bound).max()))
    assert largest > 0.25


def test_softmax_constant_holds_for_the_worst_probabilities():
    """Third derivatives along (u, u, w), maximised by ascent from many starts."""
    worst = 0.0
    for classes in (2, 3, 4, 6):
        z, u, w = (torch.randn(300, classes, dtype=torch.float64, requires_grad=True) for _ in range(3))
        optimizer = torch.optim.Adam([z, u, w], lr=0.05)
        for _ in range(300):
            p = z.softmax(1)
            spread = u.amax(1) - u.amin(1)
            centred = (u - (p * u).sum(1, keepdim=True)) / spread[:, None]
            direction = w / w.norm(dim=1, keepdim=True)
            third = (p * centred.square() * (direction - (p * direction).sum(1, keepdim=True))).sum(1)
            optimizer.zero_grad()
            (-third.sum()).backward()
            optimizer.step()
        worst = max(worst, float(third.detach().max()))
    assert 0.1 < worst < 0.2


def problem(classes, p, k=1, n=80, *, lam=0.5):
    torch.manual_seed(p)
    x = torch.randn(n, p, dtype=torch.float64)
    design = as_design(x)
    columns = 1 if classes == 2 else classes
    kept = torch.ones(p, k, dtype=torch.float64)
    for j in range(k):
        kept[j, j] = 0
    active = torch.ones(n, dtype=torch.float64)
    active[:5] = 0
    return Objective(
        design,
        torch.randint(classes, (n,)),
        loss_of(classes),
        lam,
        torch.randn(p, columns, dtype=torch.float64),
        active,
        kept,
        design.spectral_norm_bound(),
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_gradient_and_value(classes):
    objective = problem(classes, 6, k=3)
    theta = torch.randn(6, 3, objective.noise.shape[1], dtype=torch.float64) * objective.kept[:, :, None]
    theta.requires_grad_()
    value = objective.value(theta, objective.times(theta))
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    with torch.no_grad():
        found = objective.gradient(theta, objective.times(theta))
    torch.testing.assert_close(found, gradient * objective.kept[:, :, None])


@pytest.mark.parametrize("tolerance", [1e-10, 1e-3])
@pytest.mark.parametrize("p", [6, 300])
@pytest.mark.parametrize("classes", [2, 3])
def test_steps_solve_the_newton_system(classes, p, tolerance):
    objective = problem(classes, p, k=4)
    columns = objective.noise.shape[1]
    theta = 0.1 * torch.randn(p, 4, columns, dtype=torch.float64) * objective.kept[:, :, None]
    z = objective.times(theta)
    gradient = objective.gradient(theta, z)
    single = problem(classes, p)
    step = objective.step(z, -gradient, tolerance)
    assert (step.iterations == 0) == (p * columns <= 256)
    assert (step.linear <= 2 * tolerance * gradient.norm(dim=(0, 2))).all()
    assert not (step.d * (1 - objective.kept[:, :, None])).any()
    torch.testing.assert_close(step.u, objective.times(step.d))
    for k in range(4):
        free = objective.kept[:, k].bool()

        def at(part, free=free):
            full = torch.zeros(p, 1, columns, dtype=torch.float64).index_put((free,), part)
            return single.value(full, single.times(full))[0]

        if p == 6:
            part = theta[:, k : k + 1][free]
            hessian = torch.func.hessian(at)(part).reshape(part.numel(), -1)
            expected = -torch.linalg.solve(hessian, gradient[:, k][free].flatten())
            torch.testing.assert_close(step.d[:, k][free].flatten(), expected, rtol=1e-6, atol=1e-9)
    after = objective.gradient(theta + step.d, z + step.u).norm(dim=(0, 2))
    assert (after <= step.linear + step.remainder).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_minimiser_has_no_gradient(classes):
    objective = problem(classes, 300)
    theta, residual = objective.minimise(1e-9)
    assert residual <= 1e-9
    assert float(objective.gradient(theta, objective.times(theta)).norm()) == pytest.approx(residual)


def test_systems_end_by_themselves():
    matrices = torch.stack([torch.diag(torch.linspace(1, c, 30, dtype=torch.float64)) for c in (1, 5, 400)])
    v = torch.randn(30, 3, 2, dtype=torch.float64)
    v[:, 1] = 0
    seen = []

    def product(d, systems):
        seen.append(systems.tolist())
        return torch.einsum("kpq,qkc->pkc", matrices[systems], d)

    x, iterations = conjugate_gradients(product, v, 1e-8, 100)
    assert seen[0] == [0, 2]
    assert seen[1:] == [[2]] * (iterations - 1)
    torch.testing.assert_close(torch.einsum("kpq,qkc->pkc", matrices, x), v, rtol=1e-6, atol=1e-6)
