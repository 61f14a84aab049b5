"""A user's own layer joins the fast per-sample gradients without a change of the package."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import unlearnx.curvature
from tests.curvature.test_fisher import assert_equal, empirical
from unlearnx.curvature import fisher_diagonal, per_sample_grad_difference, register_rule
from unlearnx.curvature.contributions import LinearWeight
from unlearnx.curvature.samples import SampleGradients


class Wave(torch.autograd.Function):
    """sin(x W^T) * scale, which torch does not look inside of."""

    @staticmethod
    def forward(ctx, x, weight, scale):
        ctx.save_for_backward(x, weight, scale)
        return torch.sin(x @ weight.T) * scale

    @staticmethod
    def backward(ctx, dy):
        x, weight, scale = ctx.saved_tensors
        z = x @ weight.T
        dz = dy * scale * torch.cos(z)
        return dz @ weight, dz.T @ x, (dy * torch.sin(z)).sum(0)


def gradients(dy, x, weight, scale):
    z = x @ weight.T
    yield weight, LinearWeight(x, dy * scale * torch.cos(z))
    yield scale, dy * torch.sin(z)


def wrong_gradients(dy, x, weight, scale):
    yield weight, LinearWeight(x, dy)
    yield scale, dy


@torch.library.custom_op("unlearnx_tests::shifted", mutates_args=())
def shifted(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return x + shift


shifted.register_fake(lambda x, shift: torch.empty_like(x))
shifted.register_autograd(lambda ctx, dy: (dy, dy.sum(0)))


class Model(nn.Module):
    """A layer of the user's, called twice, the second time by name."""

    def __init__(self, wave):
        super().__init__()
        self.wave, self.last = wave, nn.Linear(4, 3)
        self.weight, self.scale = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.rand(4))
        self.shift = nn.Parameter(torch.rand(4))

    def forward(self, x):
        x = self.wave(x, self.weight, self.scale)
        return self.last(shifted(self.wave(x, weight=self.weight, scale=self.scale), self.shift))


def called_by_name(x, weight, scale):
    return Wave.apply(x, weight, scale)


def parts():
    torch.manual_seed(0)
    return torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))


def by_vmap(monkeypatch):
    names, original = set(), SampleGradients._run_without_rules

    def spy(self, missing, *args):
        names.update(missing)
        return original(self, missing, *args)

    monkeypatch.setattr(SampleGradients, "_run_without_rules", spy)
    return names


def test_a_layer_of_the_users(monkeypatch):
    x, y = parts()
    register_rule(shifted, lambda dy, x, shift: [(shift, dy)])
    model = Model(register_rule(called_by_name, gradients)).double()
    expected = empirical(model, x, y)
    slow = by_vmap(monkeypatch)
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y), batch_size=4), expected)
    assert_equal(
        {k: r.square().mean(0) for k, r in per_sample_grad_difference(model, F.cross_entropy, (x, y)).items()}, expected
    )
    assert slow == set()


def test_a_wrong_rule_is_not_believed(monkeypatch):
    x, y = parts()
    model = Model(register_rule(called_by_name, wrong_gradients)).double()
    slow = by_vmap(monkeypatch)
    assert_equal(fisher_diagonal(model, F.cross_entropy, (x, y)), empirical(model, x, y))
    assert {"weight", "scale"} <= slow


def test_a_rule_of_wrong_shape_says_so():
    x, y = parts()
    model = Model(register_rule(called_by_name, lambda dy, x, weight, scale: [(scale, dy.sum(1))])).double()
    with pytest.warns(match=r"yielded shape \[3\] for a parameter of shape \[4\], expected \(N, \*parameter.shape\)"):
        fisher_diagonal(model, F.cross_entropy, (x, y))


def test_what_is_called_elsewhere_stays_the_same():
    x, _ = parts()
    wave = register_rule(called_by_name, gradients)
    assert wave.__name__ == "called_by_name"
    weight, scale = torch.randn(4, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    assert torch.equal(wave(x, weight, scale=scale), Wave.apply(x, weight, scale))
    assert register_rule(torch.logit, gradients) is torch.logit


@pytest.mark.parametrize(("function", "rule"), [("wave", gradients), (called_by_name, None)])
def test_only_functions(function, rule):
    with pytest.raises(TypeError, match="expected a function"):
        register_rule(function, rule)


def test_no_circles_among_modules():
    """Of the engines: a rule knows nothing of who calls it."""
    root = Path(unlearnx.curvature.__file__).parent
    parts = {path: path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py")}
    names = {p: ".".join(("unlearnx.curvature", *own)).removesuffix(".__init__") for p, own in parts.items()}
    imports = {}
    for path, name in names.items():
        found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        modules = {n.module for n in found} | {f"{n.module}.{alias.name}" for n in found for alias in n.names}
        imports[name] = modules & set(names.values()) - {name} - {name}
    TopologicalSorter(imports).prepare()
    assert {m for m in imports["unlearnx.curvature.tape"] if ".rules" in m} == {"unlearnx.curvature.rules.registry"}
