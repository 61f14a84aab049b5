"""Influence of every training point, and its Shapley value for nearest neighbours, against every other way to them.

Products with per-sample gradients are given in multiples of one forward and backward pass over the same data.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from benchmarks import comparison
from benchmarks.comparison import GivesSomethingElse
from benchmarks.fisher_cases import build, forward_backward
from benchmarks.summary import INSTALL_RIVALS
from benchmarks.units import UNIT, in_units
from unlearnx.attribution import knn_shapley, linear_influence
from unlearnx.curvature import fisher_diagonal, grad_difference, per_sample_grad_dot
from unlearnx.models import digits_cnn

BATCH = 256


def case(name, n, device):
    if name != "digits-cnn":
        return build(name, n, device)
    torch.manual_seed(0)
    return (
        digits_cnn().eval().to(device),
        torch.randn(n, 1, 8, 8, device=device),
        torch.randint(10, (n,), device=device),
    )


def parts(x, y, size=BATCH):
    return list(zip(x.split(size), y.split(size), strict=True))


def functional(model):
    values = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def losses(values, x, y):
        return F.cross_entropy(functional_call(model, (values, buffers), (x,)), y, reduction="none")

    return values, losses


def forward_mode(model, x, y, v):
    """The tangent of all losses of a batch, one forward-mode pass for each direction."""
    values, losses = functional(model)

    def run():
        rows = []
        for a, b in parts(x, y):
            directions = [{name: t[k] for name, t in v.items()} for k in range(len(next(iter(v.values()))))]
            rows.append([jvp(lambda p, a=a, b=b: losses(p, a, b), (values,), (d,))[1] for d in directions])
        return torch.stack([torch.cat(row) for row in zip(*rows, strict=True)])

    return run


def vmapped(model, x, y, v, chunk=16):
    """Per-sample gradients by torch.func, `chunk` at a time."""
    values, losses = functional(model)
    each = vmap(grad(lambda p, a, b: losses(p, a[None], b[None]).sum()), in_dims=(None, 0, 0))

    def run():
        rows = []
        for a, b in parts(x, y, chunk):
            gradients = each(values, a, b)
            rows.append(sum(t.flatten(1) @ gradients[name].flatten(1).T for name, t in v.items()))
        return torch.cat(rows, 1)

    return run


def captum(model, x, y, v):
    """Its helper for per-sample gradients, on linear layers and convolutions, which TracInCP works with."""
    from captum._utils.gradient import _compute_jacobian_wrt_params_with_sample_wise_trick

    loss = nn.CrossEntropyLoss(reduction="sum")

    def run():
        rows = []
        for a, b in parts(x, y, 64):
            gradients = _compute_jacobian_wrt_params_with_sample_wise_trick(model, (a,), b, loss, "sum")
            rows.append(sum(t.flatten(1) @ g.flatten(1).T for t, g in zip(v.values(), gradients, strict=True)))
        return torch.cat(rows, 1)

    return run


def pydvl(model, x, y, v):
    """Its mixed gradients, by vmap, on batches of 16."""
    from pydvl.influence.torch.functional import create_per_sample_gradient_function

    each = create_per_sample_gradient_function(model, nn.CrossEntropyLoss())
    values = {name: p.detach() for name, p in model.named_parameters()}

    def run():
        rows = []
        for a, b in parts(x, y, 16):
            gradients = each(values, a, b)
            rows.append(sum(t.flatten(1) @ gradients[name].flatten(1).T for name, t in v.items()))
        return torch.cat(rows, 1)

    return run


RIVALS = {"forward mode": forward_mode, "vmap(grad), 16": vmapped, "captum": captum, "pyDVL": pydvl}


def available(model, x, y, v):
    """The rivals that are installed, take the model and give the same; what is wrong with the others."""
    expected = per_sample_grad_dot(model, F.cross_entropy, (x[:8], y[:8]), v)

    def attempt(make):
        if (make(model, x[:8], y[:8], v)().detach() - expected).norm() > 1e-3 * expected.norm():
            raise GivesSomethingElse
        return make(model, x, y, v)

    return comparison.available(RIVALS, attempt)


@pytest.mark.benchmark(group="per_sample_grad_dot")
@pytest.mark.parametrize("directions", [1, 4])
@pytest.mark.parametrize(
    ("name", "n"), [("digits-cnn", 8000), ("vgg", 128), ("vit", 256), ("char-lstm", 1024), ("logistic", 8000)]
)
def test_products(compare, benchmark, claim, device, name, n, directions):
    model, x, y = case(name, n, device)
    v = {k: torch.randn(directions, *p.shape, device=device) for k, p in model.named_parameters()}
    rivals, refused = available(model, x, y, v)
    steps = [forward_backward(model, a, b) for a, b in parts(x, y)]
    ratios = compare.run(
        lambda: per_sample_grad_dot(model, F.cross_entropy, (x, y), v, batch_size=BATCH),
        {UNIT: lambda: [step() for step in steps], **rivals},
        rounds=5,
        warmups=1,
        claims=dict.fromkeys(rivals, 1.0),
        refused=refused,
    )
    multiples = in_units(benchmark, ratios)
    if (name, directions) == ("digits-cnn", 1):
        claim(multiples["ours"] <= 1.1, "one direction costs 1.1 forward and backward passes or less")


@pytest.mark.benchmark(group="linear_influence")
def test_linear_influence(compare, benchmark, device):
    """Fisher diagonal, failures and products in all, against pyDVL's influence by the same diagonal, and jvp."""
    model, x, y = case("digits-cnn", 8000, device)
    failures = torch.randn(100, 1, 8, 8, device=device), torch.randint(10, (100,), device=device)

    def by_forward_mode():
        fisher = fisher_diagonal(model, F.cross_entropy, (x, y))
        slope = grad_difference(model, F.cross_entropy, failures)
        damping = sum(t.sum() for t in fisher.values()) / sum(t.numel() for t in fisher.values())
        step = {name: -g / (fisher[name] + damping) / len(x) for name, g in slope.items()}
        return forward_mode(model, x, y, {name: t[None] for name, t in step.items()})()[0]

    torch.testing.assert_close(
        linear_influence(model, F.cross_entropy, (x, y), failures), by_forward_mode(), rtol=1e-2, atol=1e-4
    )
    steps = [forward_backward(model, a, b) for a, b in parts(x, y)]
    ratios = compare.run(
        lambda: linear_influence(model, F.cross_entropy, (x, y), failures),
        {UNIT: lambda: [step() for step in steps], "forward mode for the products": by_forward_mode},
        rounds=5,
        warmups=1,
    )
    in_units(benchmark, ratios)


@pytest.mark.benchmark(group="knn_shapley")
def test_knn_shapley(compare, device):
    valuation = pytest.importorskip("pydvl.valuation", reason=f"needs pyDVL; `{INSTALL_RIVALS}` brings it")
    from sklearn.neighbors import KNeighborsClassifier

    torch.manual_seed(0)
    x, x_test = torch.randn(2000, 64), torch.randn(500, 64)
    y, y_test = torch.randint(10, (2000,)), torch.randint(10, (500,))
    train = valuation.Dataset(x.numpy(), y.numpy())
    test = valuation.Dataset(x_test.numpy(), y_test.numpy())
    ours = [t.to(device) for t in (x, y, x_test, y_test)]

    def theirs():
        return valuation.KNNShapleyValuation(KNeighborsClassifier(5), test, progress=False).fit(train).values().values

    expected = torch.from_numpy(theirs())
    torch.testing.assert_close(knn_shapley(*ours).cpu(), expected, rtol=1e-9, atol=1e-9)
    compare.run(lambda: knn_shapley(*ours), {"pyDVL": theirs}, rounds=5, warmups=1, claims={"pyDVL": 15})
