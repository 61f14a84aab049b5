"""LiSSA on a linear head, for many right-hand sides at once and without autograd: the op, and the solver above it."""

import pytest
import torch
from torch.nn import functional as F

from unlearnx.curvature import CurvatureOperator, LiSSA
from unlearnx.ops import lissa_softmax_linear

N, FEATURES, CLASSES, SIDES = 10_000, 512, 10, 32
DAMPING, SCALE, ITERATIONS = 1e-2, 1.0, 20
LOOPS = 4  # right-hand sides in one call of the others, which work them off one after the other


class Autograd:
    """LiSSA as published code runs it: one right-hand side after the other, products by two backward passes."""

    def __init__(self, h, y, weight, v):
        self.h, self.y, self.v = h, y, v
        self.weight = weight.clone().requires_grad_()
        self.kept_gradient = self.gradient(slice(None))

    def gradient(self, batch):
        loss = F.cross_entropy(self.h[batch] @ self.weight.T, self.y[batch])
        return torch.autograd.grad(loss, self.weight, create_graph=True)[0]

    def loops(self, product):
        return torch.stack([self.loop(v, product) for v in self.v[:LOOPS]])

    def loop(self, v, product):
        u = v.clone()
        for i in range(ITERATIONS):
            u = v + (1 - DAMPING) * u - product(i, u) / SCALE
        return u / SCALE

    def fresh(self, batch_size):
        """A graph for every product."""
        batches = [slice(begin, begin + batch_size) for begin in range(0, N, batch_size)]

        def product(i, u):
            return torch.autograd.grad(self.gradient(batches[i % len(batches)]), self.weight, u)[0]

        return self.loops(product)

    def kept(self):
        """One graph for all products, which are over all the data; built beforehand."""
        return self.loops(lambda _, u: torch.autograd.grad(self.kept_gradient, self.weight, u, retain_graph=True)[0])


def problem(device):
    h = torch.randn(N, FEATURES, device=device) / FEATURES**0.5
    weight = torch.randn(CLASSES, FEATURES, device=device)
    v = torch.randn(SIDES, CLASSES, FEATURES, device=device)
    y = torch.randint(CLASSES, (N,), device=device)
    return h, h @ weight.T, v, Autograd(h, y, weight, v)


@pytest.mark.benchmark(group="lissa_softmax_linear")
@pytest.mark.parametrize(
    "batch_size", [pytest.param(N, id="all", marks=pytest.mark.headline), pytest.param(1024, id="1024")]
)
def test_lissa_softmax_linear(compare, device, batch_size):
    h, logits, v, autograd = problem(device)
    options = dict(damping=DAMPING, scale=SCALE, batch_size=batch_size, iterations=ITERATIONS, from_logits=True)
    competitors = {"fresh graphs": lambda: autograd.fresh(batch_size)}
    if batch_size == N:
        competitors["a kept graph"] = autograd.kept
    ours = lissa_softmax_linear(h, logits, v, **options)[0][:LOOPS]
    for run in competitors.values():
        theirs = run()
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    compare.run(
        lambda: lissa_softmax_linear(h, logits, v, **options),
        competitors,
        rounds=3,
        calls=dict.fromkeys(competitors, SIDES // LOOPS),
        claims={"fresh graphs": 10},
    )


SCHEDULES = {
    "all": LiSSA(DAMPING, SCALE, None, ITERATIONS),
    "1024": LiSSA(DAMPING, SCALE, 1024, ITERATIONS),
    "auto": LiSSA(DAMPING, "auto", None, ITERATIONS),  # which ends at a residual: products in closed form alone
}


@pytest.mark.benchmark(group="lissa on a softmax head")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sides", [1, SIDES])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_solve(compare, device, schedule, sides, dtype):
    """The solver on a recognised head, against the graphs of any other model; both keep what they can."""
    layer = torch.nn.Linear(FEATURES, CLASSES).to(device, dtype)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(N, FEATURES, device=device, dtype=dtype) / FEATURES**0.5
    y = torch.randint(CLASSES, (N,), device=device)
    v = {name: torch.randn(sides, *p.shape, device=device, dtype=dtype) for name, p in layer.named_parameters()}
    recognised = CurvatureOperator(layer, F.cross_entropy, (x, y))
    others = {
        f"any model, passes of {size:,}": CurvatureOperator(
            layer, lambda output, y: F.cross_entropy(output, y), (x, y), batch_size=size
        )
        for size in (256, 4096)
    }
    solver = SCHEDULES[schedule]
    ours = solver.solve(recognised, v)
    for other in others.values():
        theirs = solver.solve(other, v)
        assert ours.iterations == theirs.iterations
        for name, t in theirs.x.items():
            assert (ours.x[name] - t).norm() <= (1e-5 if dtype == torch.float32 else 1e-10) * t.norm()
    # One right-hand side in wide passes is two reads of the features, for any of them.
    least = 0.75 if sides == 1 else 2
    compare.run(
        lambda: solver.solve(recognised, v),
        {name: (lambda other=other: solver.solve(other, v)) for name, other in others.items()},
        rounds=3 if sides == 1 else 1,
        warmups=0,
        claims=dict.fromkeys(others, least),
    )
