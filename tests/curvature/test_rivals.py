"""The curvature products and solutions of other libraries, against ours and against dense matrices."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from benchmarks.curvature_cases import MANY, RIVALS, SOLVERS, build_head, flat, like
from tests.helpers import threads
from unlearnx import curvature
from unlearnx.curvature import CurvatureOperator, LiSSA
from unlearnx.models import digits_cnn

PACKAGES = {
    "BackPACK": "backpack",
    "curvlinops": "curvlinops",
    "dattri": "dattri.func.hessian",
    "hessian-eigenthings": "hessian_eigenthings",
    "pyDVL": "pydvl.influence.torch",
}
# What pyDVL calls Gauss-Newton is the mean of g g^T over the gradients g of the samples.
EMPIRICAL_FISHER = ("ggn", "pyDVL")


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread: on problems this small a second thread costs more than it saves."""
    with threads(1):
        yield


def cases(table):
    return [(kind, name) for kind, rivals in table.items() for name in rivals]


def need(name):
    package = PACKAGES.get(name.split(",")[0])
    if package:
        pytest.importorskip(package)


def small(*normalisation):
    """A perceptron of 134 parameters: its matrices fit in memory."""
    model = nn.Sequential(nn.Linear(8, 10), *normalisation, nn.Tanh(), nn.Linear(10, 4)).double().eval()
    return model, torch.randn(24, 8, dtype=torch.float64), torch.randint(4, (24,))


def digits():
    model = digits_cnn().double().eval()
    return model, torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(10, (6,))


def dense(kind, model, x, y):
    """The matrix itself, by its definition."""

    def output(vector):
        named = dict(zip(dict(model.named_parameters()), like(model, vector), strict=True))
        return functional_call(model, named, (x,))

    point = flat(p.detach() for p in model.parameters())
    if kind == "hessian":
        # With jacrev inside, as in torch.func.hessian, a LayerNorm makes it wrong and not even symmetric (torch 2.13).
        return jacrev(grad(lambda vector: F.cross_entropy(output(vector), y)))(point)
    J, p = jacrev(output)(point), output(point).softmax(1)
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nap,nab,nbq->pq", J, H, J) / len(x)


def random_like(model, k=None):
    return [torch.randn(*([] if k is None else [k]), *p.shape).to(p) for p in model.parameters()]


def ours(kind, model, x, y, v):
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind)
    return list(operator.matvec(dict(zip(operator.names, v, strict=True))).values())


def assert_close(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("normalisation", [(), (nn.LayerNorm(10),)], ids=["plain", "LayerNorm"])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_our_product_is_that_of_the_dense_matrix(kind, normalisation):
    model, x, y = small(*normalisation)
    v = random_like(model)
    assert_close(ours(kind, model, x, y, v), like(model, dense(kind, model, x, y) @ flat(v)), 1e-10)


@pytest.mark.parametrize("problem", [small, digits], ids=["perceptron", "digits"])
@pytest.mark.parametrize(("kind", "name"), cases(RIVALS))
def test_products(kind, name, problem):
    need(name)
    model, x, y = problem()
    v = random_like(model)
    got = RIVALS[kind][name](model, x, y)(v)
    if (kind, name) == EMPIRICAL_FISHER:
        g = torch.stack(
            [
                flat(torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters())))
                for i in range(len(x))
            ]
        )
        assert_close(got, like(model, g.T @ (g @ flat(v)) / len(x)), 1e-8)
        return
    assert_close(got, ours(kind, model, x, y, v), 1e-8)


@pytest.mark.parametrize(("kind", "name"), [case for case in cases(MANY) if case != EMPIRICAL_FISHER])
def test_products_with_many_vectors(kind, name):
    need(name)
    model, x, y = digits()
    v = random_like(model, k=3)
    got = MANY[kind][name](model, x, y)(v)
    rows = [ours(kind, model, x, y, row) for row in zip(*v, strict=True)]
    assert_close(got, [torch.stack(parts) for parts in zip(*rows, strict=True)], 1e-8)


@pytest.mark.parametrize(("kind", "name"), [case for case in cases(RIVALS) if case != EMPIRICAL_FISHER])
def test_products_in_the_published_setting(kind, name):
    need(name)
    model, x, y = build_head(4, dtype=torch.float64)
    v = random_like(model)
    assert_close(RIVALS[kind][name](model, x, y)(v), ours(kind, model, x, y, v), 1e-8)


@pytest.mark.parametrize(("kind", "name"), cases(SOLVERS))
def test_solutions(kind, name):
    """The other library's, our and the dense solution of the same system agree to more digits than is asked for."""
    need(name)
    model, x, y = small()
    C, v = dense(kind, model, x, y), random_like(model)
    eigenvalues = torch.linalg.eigvalsh(C)
    damping = (0.5 * eigenvalues[-1] - eigenvalues[0].clamp(max=0)).item()  # 80 iterations leave 1e-12
    scale = 1.1 * (eigenvalues[-1].item() + damping)
    exact = like(model, torch.linalg.solve(C + damping * torch.eye(len(C), dtype=C.dtype), flat(v)))
    iterations = 30 if name.endswith("CG") else 80
    assert_close(SOLVERS[kind][name](model, x, y, damping, scale, iterations)(v), exact, 1e-8)

    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind)
    lissa = LiSSA(damping / scale, scale, batch_size=None, recursion_depth=80, patience=80)
    solution = lissa.solve(operator, dict(zip(operator.names, v, strict=True)))
    assert solution.converged
    assert_close(list(solution.x.values()), exact, 1e-8)


def factored(name):
    """Small networks whose covariances have full rank, so that their eigenbases have no choice."""
    torch.manual_seed(0)
    x = {
        "mlp": torch.randn(64, 6),
        "sequence": torch.randn(64, 3, 6),
        "cnn": torch.randn(64, 2, 6, 6),
    }[name].double()
    model = {
        "mlp": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)),
        "sequence": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Flatten(), nn.Linear(12, 4)),
        "cnn": nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 2), nn.Flatten(), nn.Linear(12, 4)
        ),
    }[name].double()
    return model, x, torch.randint(4, (64,))


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("fisher_type", ["empirical", "exact"])
@pytest.mark.parametrize("kind", ["KFAC", "EKFAC"])
@pytest.mark.parametrize("name", ["mlp", "sequence", "cnn"])
def test_kronecker_factors(name, kind, fisher_type, approximation):
    """The products are those of curvlinops with weight and bias together."""
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = factored(name)
    ours_ = getattr(curvature, kind)(fisher_type=fisher_type, approximation=approximation)
    factors = ours_.fit(model, F.cross_entropy, (x, y), batch_size=24)
    theirs = getattr(curvlinops, f"{kind}LinearOperator")(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type={"empirical": "empirical", "exact": "type-2"}[fisher_type],
        kfac_approx=approximation,
        separate_weight_and_bias=False,
    )
    v = [torch.randn_like(p) for p in model.parameters()]
    got = factors.matvec(dict(zip(dict(model.named_parameters()), v, strict=True)))
    assert_close(list(got.values()), theirs @ v, 1e-8)
