import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx._data import materialize
from unlearnx.curvature import ConjugateGradient, CurvatureOperator, Direct, LiSSA, fisher_diagonal, grad_difference
from unlearnx.methods import EnergyAlignment, EWCRepair, FineTune, NewtonRepair, Pipeline
from unlearnx.methods.energy_alignment import descend, free_energy
from unlearnx.metrics import accuracy, mean_loss, probabilities
from unlearnx.models import Training

WRONG = 60
METHODS = [
    NewtonRepair(),
    NewtonRepair(gamma=0.5, kind="diagonal"),
    NewtonRepair(kind="hessian", damping=0.5, solver=ConjugateGradient(), params="last:2"),
    EWCRepair(),
    EWCRepair(params="last:2", fisher_type="mc"),
    Pipeline([EWCRepair(), EnergyAlignment()]),
]


def named(method):
    return type(method).__name__ + getattr(method, "kind", "")


@pytest.fixture(scope="module")
def study():
    """A trained model, the request to remove its wrongly labelled points, and test data: three clusters."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (500,), generator=generator)
    x = 3 * torch.eye(3, 6)[y] + torch.randn(500, 6, generator=generator)
    given = y.clone()
    given[:WRONG] = (y[:WRONG] + 1) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 3)).train()
    Training(120, lr=1e-2, batch_size=50).run(model, (x[:300], given[:300]))
    return model.eval(), Request.remove((x[:300], given[:300]), range(WRONG)), (x[300:], y[300:])


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_unlearns_wrong_labels_and_leaves_the_model_alone(study, method):
    model, request, test = study
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    outcome = method(model, request)
    assert outcome.applied, outcome.reason
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in [*model.parameters(), *outcome.model.parameters()])
    assert not any(m.training for m in outcome.model.modules())
    assert outcome.gradient_evaluations > 0
    assert mean_loss(outcome.model, F.cross_entropy, request.forget_set) > mean_loss(
        model, F.cross_entropy, request.forget_set
    )
    assert accuracy(outcome.model, test) > accuracy(model, test) + 0.01
    again = method(model, request)
    for name, value in outcome.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


@pytest.mark.parametrize("kind", ["ggn", "hessian", "diagonal"])
def test_newton_step_is_the_one_of_the_paper(study, kind):
    model, request, _ = study
    model = copy.deepcopy(model).double()
    x, y = materialize(request.dataset)
    request = Request.remove((x.double(), y), request.forget)
    damping, gamma = 0.7, 0.3
    method = NewtonRepair(
        gamma, kind, damping, Direct() if kind != "diagonal" else LiSSA(), params="last:2", max_increase=9.0
    )
    outcome = method(model, request)
    assert outcome.applied, outcome.reason
    # The sum over C of the losses' gradients, over N: |C| / N times the gradient of their mean.
    gradient = grad_difference(model, F.cross_entropy, request.forget_set, params="last:2")
    gradient = {name: t / len(y) for name, t in gradient.items()}
    if kind == "diagonal":
        fisher = fisher_diagonal(model, F.cross_entropy, request.dataset, params="last:2")
        direction = {name: t / (fisher[name] + damping) for name, t in gradient.items()}
    else:
        operator = CurvatureOperator(
            model, F.cross_entropy, request.dataset, kind=kind, damping=damping, params="last:2"
        )
        direction = Direct().solve(operator, gradient).x
    for name, t in direction.items():
        torch.testing.assert_close(outcome.model.get_parameter(name), model.get_parameter(name) + gamma * t)


def test_newton_repair_of_a_quadratic_is_retraining():
    """With squared losses one step gives the solution without the points, up to their share of the curvature."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, dtype=torch.float64, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    y[:20] += 3

    def fitted(x, y):
        model = nn.Linear(3, 1, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
        return model

    def loss(output, target):
        return (output - target).square().sum(1) / 2

    model, retrained = fitted(x, y), fitted(x[20:], y[20:])
    method = NewtonRepair(1.0, "ggn", 0.0, Direct(), loss_fn=loss)
    repaired = method(model, Request.remove((x, y), range(20))).model
    before, after = ((m.weight - retrained.weight).norm() for m in (model, repaired))
    assert after < 0.15 * before
    assert method(model, Request.remove((x, y), range(20))).info["steps"][0]["residual"] < 1e-8


def test_automatic_gamma_lowers_the_loss_of_the_points_that_stay(study):
    model, request, _ = study
    for kind in ("ggn", "diagonal"):
        outcome = NewtonRepair(kind=kind, max_increase=0.0)(model, request)
        old, new = outcome.loss_before, outcome.loss_after
        assert new < old


def test_ewc_bound_stops_the_climb(study):
    model, request, _ = study
    free = dict(strength=0.0, l2=0.0, epochs=60, lr=5e-3, max_increase=math.inf)
    low = EWCRepair(bound=0.7, **free)(model, request)
    assert low.info["bound"] == 0.7
    unbounded = EWCRepair(bound=1e9, **free)(model, request)
    losses = [mean_loss(outcome.model, F.cross_entropy, request.forget_set) for outcome in (low, unbounded)]
    assert losses[0] > 0.5
    assert losses[1] > 5 * losses[0]
    assert EWCRepair()(model, request).info["bound"] == pytest.approx(math.log(3))


def test_ewc_strength_holds_the_weights(study):
    model, request, _ = study
    origin = dict(model.named_parameters())

    def moved(**arguments):
        changed = EWCRepair(max_increase=math.inf, **arguments)(model, request).model
        return sum((p - origin[name]).detach().square().sum() for name, p in changed.named_parameters()) ** 0.5

    assert moved(strength=1e4) < 0.2 * moved(strength=1e-4)
    assert moved(strength=0.0, l2=1e3) < 0.2 * moved(strength=0.0, l2=0.0)


def test_free_energy_and_its_descent():
    head = nn.Linear(4, 3).double()
    h = torch.randn(50, 4, dtype=torch.float64)
    energies = free_energy(head, h)
    torch.testing.assert_close(energies, -head(h).exp().sum(1).log())
    moved = descend(head, h, 5, 0.1)
    assert (free_energy(head, moved) < energies).all()
    assert (moved - h).norm(dim=1).max() <= 5 * 0.1 * h.norm(dim=1).mean() * (1 + 1e-9)
    assert torch.equal(descend(head, h, 1, 0.0), h)
    with pytest.raises(ValueError, match="expected class scores"):
        free_energy(nn.Unflatten(1, (2, 2)), h)


def test_energy_alignment_moves_only_the_last_layers(study):
    model, request, _ = study
    outcome = EnergyAlignment()(model, request)
    assert outcome.applied
    before, after = outcome.info["energy"]
    assert after < before
    for name, value in model.state_dict().items():
        assert torch.equal(value, outcome.model.state_dict()[name]) == (not name.startswith("4."))


def test_energy_alignment_keeps_what_the_repaired_model_says(study):
    model, request, _ = study
    repaired = Pipeline([EWCRepair(), FineTune(epochs=5, lr=5e-3)])(model, request).model
    aligned = EnergyAlignment(epochs=5)(repaired, request).model
    said = probabilities(repaired, request.forget_set).argmax(1)
    assert (probabilities(aligned, request.forget_set).argmax(1) == said).double().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_energy_alignment_in_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype).eval()
    request = Request.remove((torch.randn(30, 6, dtype=dtype), torch.arange(30) % 3), range(4))
    outcome = EnergyAlignment(epochs=1, max_increase=9.0)(model, request)
    assert outcome.applied
    assert {p.dtype for p in outcome.model.parameters()} == {dtype}


def test_corrections(study):
    model, request, test = study
    (x, given), (_, fixed) = materialize(request.dataset), materialize(request.dataset)
    fixed = fixed.clone()
    fixed[:WRONG] = (given[:WRONG] - 1) % 3
    correction = Request.correct((x, given), (x, fixed))
    outcome = NewtonRepair()(model, correction)
    assert outcome.applied
    assert accuracy(outcome.model, test) > accuracy(model, test)


@pytest.mark.parametrize("params", [None, "last:2"])
@pytest.mark.parametrize(
    "method",
    [
        NewtonRepair(gamma=1e6),
        NewtonRepair(gamma=1e6, kind="diagonal"),
        NewtonRepair(solver=LiSSA(damping=0.0, scale=1e-4, recursion_depth=30, batch_size=None)),
        EWCRepair(epochs=10, lr=1e3, strength=0.0),
        EnergyAlignment(epochs=2, lr=1e20),
    ],
    ids=["gamma", "gamma of the diagonal", "scale", "lr", "huge lr"],
)
def test_harm_is_noticed_and_not_applied(study, method, params):
    model, request, _ = study
    outcome = dataclasses.replace(method, params=params)(model, request)
    assert not outcome.applied
    assert outcome.reason
    for name, t in outcome.model.state_dict().items():
        assert torch.equal(t, model.state_dict()[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NewtonRepair(gamma=0), "gamma is 0"),
        (lambda: NewtonRepair(kind="kfac"), "kind is 'kfac', expected one of .*diagonal"),
        (lambda: NewtonRepair(damping=-1), "damping is -1"),
        (lambda: NewtonRepair(solver="lissa"), "solver is 'lissa'"),
        (lambda: EWCRepair(epochs=0), "epochs is 0"),
        (lambda: EWCRepair(strength=-1), "strength is -1"),
        (lambda: EWCRepair(bound=math.nan), "bound is nan"),
        (lambda: EWCRepair(fisher_type="kfac"), "fisher_type is 'kfac'"),
        (lambda: EnergyAlignment(steps=0), "steps is 0"),
        (lambda: EnergyAlignment(step=math.inf), "step is inf"),
    ],
)
def test_refuses_arguments(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_bound_needs_classes():
    request = Request.remove((torch.randn(20, 3), torch.randn(20, 1)), range(5))
    with pytest.raises(ValueError, match="expected a number"):
        EWCRepair(loss_fn=F.mse_loss)(nn.Linear(3, 1), request)
    assert EWCRepair(loss_fn=F.mse_loss, bound=1.0, max_increase=9.0)(nn.Linear(3, 1), request).applied
