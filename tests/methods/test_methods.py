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
from unlearnx.methods import SSD, FineTune, FirstOrder, NewtonRepair, Retrain, SecondOrder
from unlearnx.metrics import accuracy, mean_loss, predict
from unlearnx.models import Training

METHODS = [
    SSD(alpha=2.0),
    FirstOrder(),
    FirstOrder(points="forget"),
    FirstOrder(params="last:2", points_per_step=5),
    SecondOrder(),
    SecondOrder(kind="hessian", params="last:2", damping=0.1),
    FineTune(epochs=10, lr=1e-2),
    FineTune(epochs=10, lr=1e-2, anchor=1e-3, params="last:2"),
    Retrain(epochs=30),
]


@pytest.fixture(scope="module")
def study():
    """A trained poisoned model, the request to correct it, and test data: three separable clusters."""
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.eye(3, 6)
    y = torch.randint(3, (400,), generator=generator)
    x = centers[y] + torch.randn(400, 6, generator=generator)
    given = y.clone()
    given[:60] = (y[:60] + 1) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 3))
    model.train()
    Training(120, lr=1e-2, batch_size=50).run(model, (x[:300], given[:300]))
    request = Request.correct((x[:300], given[:300]), (x[:300], y[:300]))
    return model.eval(), request, (x[300:], y[300:])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__}-{m.params}")
def test_corrects(study, method):
    model, request, test = study
    outcome = method(model, request)
    assert outcome.gradient_evaluations > 0
    assert mean_loss(outcome.model, F.cross_entropy, request.target) <= mean_loss(
        model, F.cross_entropy, request.target
    )
    if not isinstance(method, SSD):
        assert outcome.applied
        assert accuracy(outcome.model, test) > accuracy(model, test) + 0.02


@pytest.mark.parametrize("method", METHODS[:-1], ids=lambda m: f"{type(m).__name__}-{m.params}")
def test_removes(study, method):
    model, request, _ = study
    outcome = method(model, Request.remove_class(request.dataset, 1))
    assert all(p.isfinite().all() for p in outcome.model.parameters())
    old, new = outcome.loss_before, outcome.loss_after
    assert new <= old + 0.5  # what a removal may cost by default
    strict = dataclasses.replace(method, max_increase=0.0)(model, Request.remove_class(request.dataset, 1))
    old, new = strict.loss_before, strict.loss_after
    assert new <= old


@pytest.mark.parametrize("params", [None, "last:2"])
@pytest.mark.parametrize(
    "method",
    [
        FirstOrder(tau=1e3),
        FirstOrder(tau=1e30),
        SecondOrder(step=1e4),
        SecondOrder(LiSSA(damping=0.0, scale=1e-4, recursion_depth=30)),
        FineTune(lr=1e3),
        FineTune(lr=1e20),
        SSD(alpha=0.0, lam=0.0),
    ],
    ids=["tau", "huge tau", "step", "scale", "lr", "huge lr", "alpha"],
)
def test_harm_is_noticed_and_not_applied(study, method, params):
    model, request, _ = study
    outcome = dataclasses.replace(method, params=params)(model, request)
    assert not outcome.applied
    assert outcome.reason
    for name, t in outcome.model.state_dict().items():
        assert torch.equal(t, model.state_dict()[name])


def test_first_order_step_is_the_published_one(study):
    model, request, _ = study
    model = copy.deepcopy(model).double()
    (x, y), (_, y_new) = materialize(request.dataset), materialize(request.target)
    request = Request.correct((x.double(), y), (x.double(), y_new))
    tau = 1e-4
    changed = FirstOrder(tau, steps=1, points="forget")(model, request).model
    d = grad_difference(model, F.cross_entropy, request.forget_set, request.correction)
    for name, p in changed.named_parameters():
        torch.testing.assert_close(p, model.get_parameter(name) - tau * d[name])


def test_second_order_step_is_the_published_one(study):
    model, request, _ = study
    solver = LiSSA(damping=0.05, scale=20.0, batch_size=None, recursion_depth=200)
    outcome = SecondOrder(solver, steps=1, points="forget", step=1.0, params="last:2", curvature_samples=None)(
        model, request
    )
    d = grad_difference(model, F.cross_entropy, request.forget_set, request.correction, params="last:2")
    operator = CurvatureOperator(model, F.cross_entropy, request.target, params="last:2")
    x = solver.solve(operator, {k: t / 300 for k, t in d.items()})
    step = outcome.info["steps"][0]
    assert step["residual"] == pytest.approx(x.residual, abs=1e-6)
    if outcome.applied:
        for name, t in x.x.items():
            expected = model.get_parameter(name) - t
            torch.testing.assert_close(outcome.model.get_parameter(name), expected, rtol=1e-4, atol=1e-5)


def test_removal_steps_up_the_loss_of_the_forget_set(study):
    model, request, _ = study
    removal = Request.remove(request.dataset, range(60))
    outcome = FirstOrder(tau=1e-6, steps=1)(model, removal)
    assert outcome.applied
    assert mean_loss(outcome.model, F.cross_entropy, removal.forget_set) > mean_loss(
        model, F.cross_entropy, removal.forget_set
    )


@pytest.fixture(scope="module")
def learned():
    """A model that has learned four clusters, its training data and test data."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (500,), generator=generator)
    x = 3 * torch.eye(4, 8)[y] + torch.randn(500, 8, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    Training(20, lr=1e-2, batch_size=50).run(model, (x[:300], y[:300]))
    return model.eval(), (x[:300], y[:300]), (x[300:], y[300:])


STEPPING = [
    FirstOrder(),
    FirstOrder(params="last:2"),
    SecondOrder(),
    SecondOrder(ConjugateGradient(), damping=0.1, params="last:2"),
    NewtonRepair(),
]


@pytest.mark.parametrize("method", STEPPING, ids=lambda m: f"{type(m).__name__}-{m.params}")
def test_class_is_forgotten_by_default(learned, method):
    """Steps double until the class is no likelier than a guess, the others being left what they need."""
    model, data, test = learned
    removal = Request.remove_class(data, 1)
    outcome = method(model, removal)
    assert outcome.applied, outcome.reason
    before, after = (mean_loss(m, F.cross_entropy, removal.forget_set) for m in (model, outcome.model))
    assert before < math.log(4) <= after
    others = tuple(t[test[1] != 1] for t in test)
    assert accuracy(outcome.model, others) >= accuracy(model, others) - 0.02


@pytest.mark.parametrize("method", STEPPING[:4], ids=lambda m: f"{type(m).__name__}-{m.params}")
def test_removal_ends_at_the_loss_asked_for(learned, method):
    model, data, test = learned
    removal = Request.remove(data, range(30))
    goal = mean_loss(model, F.cross_entropy, test)
    assert mean_loss(model, F.cross_entropy, removal.forget_set) < goal
    outcome = dataclasses.replace(method, forget_loss=goal, steps=3)(model, removal)
    assert outcome.info["stopped"] == "the forget set is forgotten"
    (step,) = outcome.info["steps"]
    assert mean_loss(outcome.model, F.cross_entropy, removal.forget_set) >= goal
    half = {n: (p + q) / 2 for (n, p), q in zip(model.named_parameters(), outcome.model.parameters(), strict=True)}
    x, y = removal.forget_set[:]
    assert F.cross_entropy(torch.func.functional_call(model, half, x), y) < goal, step


def test_forgetting_stops_short_of_harm(learned):
    model, data, _ = learned
    method = FirstOrder(steps=3, forget_loss=1e6, max_increase=0.05)
    outcome = method(model, Request.remove(data, range(30)))
    before, after = outcome.loss_before, outcome.loss_after
    assert outcome.applied
    assert before < after < before + 0.05


def published_ssd(model, full, forget, alpha, lam):
    """The public code's rule (exponent 1, bound 1), operation by operation."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            oimp, fimp = full[name], forget[name]
            locations = torch.where(fimp > oimp.mul(alpha))
            update = (oimp.mul(lam).div(fimp)).pow(1)[locations]
            update[torch.where(update > 1)] = 1
            p[locations] = p[locations].mul(update)


def test_ssd_batch_is_the_published_rule(study):
    model, request, _ = study
    removal = Request.remove_class(request.dataset, 2)
    options = dict(fisher_type="batch", batch_size=50)
    full = fisher_diagonal(model, F.cross_entropy, removal.dataset, **options)
    forget = fisher_diagonal(model, F.cross_entropy, removal.forget_set, **options)
    theirs = copy.deepcopy(model)
    published_ssd(theirs, full, forget, 1.5, 0.8)
    ours = SSD(1.5, 0.8, fisher_type="batch", max_increase=100, batch_size=50)(model, removal)
    assert ours.info["dampened_share"] > 0
    for name, p in ours.model.named_parameters():
        torch.testing.assert_close(p, theirs.get_parameter(name), rtol=1e-6, atol=0)


def test_ssd_refuses_nan(study):
    model, request, _ = study
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[4].bias[0] = math.nan
    with pytest.raises(ValueError, match=r"Fisher diagonal of '0\.weight'"):
        SSD()(broken, request)


def test_ssd_does_not_destroy_the_model(study):
    model, request, _ = study
    removal = Request.remove_class(request.target, 0)
    outcome = SSD(alpha=0.0, lam=0.0)(model, removal)
    assert not outcome.applied
    assert "max_increase=0.5" in outcome.reason
    assert not SSD(alpha=1.1, max_increase=0.0)(model, removal).applied
    assert SSD(alpha=1.1, max_increase=10.0)(model, removal).applied


def test_corrected_features_are_corrected(study):
    """The model may predict right on features that are to be corrected: there is something to do all the same."""
    model, request, _ = study
    x, y = materialize(request.target)
    x_new = x.clone()
    x_new[:, 0] = 0
    for method in (FirstOrder(), SecondOrder()):
        outcome = method(model, Request.correct((x, y), (x_new, y)))
        assert outcome.applied
        assert outcome.info["steps"][0]["points"] == 300


def test_curvature_products_are_counted(study):
    model, request, _ = study
    outcome = SecondOrder(LiSSA(scale=20.0, batch_size=None, recursion_depth=7), steps=1)(model, request)
    points = outcome.info["steps"][0]["points"]
    assert outcome.gradient_evaluations == points + (7 + 1) * 300  # and one product for the residual


@pytest.mark.parametrize("solver", [ConjugateGradient(tolerance=1e-6), LiSSA(0.0, 50.0, None, 400), Direct()])
@pytest.mark.parametrize("params", [None, "last:2"])
def test_many_requests_at_once(study, solver, params):
    """Each outcome is what a single request has whose curvature is that of the data as they were."""
    model, request, _ = study
    x, y = request.dataset.tensors
    before = copy.deepcopy(model.state_dict())
    corrections = [torch.where((torch.arange(300) // 20 == part), request.corrected.tensors[1], y) for part in (0, 2)]
    requests = [Request.remove((x, y), range(5)), *(Request.correct((x, y), (x, new)) for new in corrections)]
    method = SecondOrder(solver, damping=0.1, steps=1, params=params, points="forget", curvature_samples=None)
    outcomes = method.many(model, requests)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    names = [k for k, _ in model.named_parameters()][-2 if params else 0 :]
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), damping=0.1, params=names)
    for outcome, r in zip(outcomes, requests, strict=True):
        sign = -1 if r.correction is None else 1
        difference = grad_difference(model, F.cross_entropy, r.forget_set, r.correction, params=names)
        expected = solver.solve(operator, {k: sign * t / 300 for k, t in difference.items()})
        step = outcome.info["steps"][0]
        assert step["residual"] == pytest.approx(expected.residual, abs=2e-6)
        assert step["points"] == outcome.gradient_evaluations == len(r.forget)
        assert outcome.applied or r.correction is None  # a removal may raise the loss on what stays
        state = outcome.model.state_dict()
        for k in names if outcome.applied else []:
            torch.testing.assert_close(state[k], before[k] - step["step"] * expected.x[k], rtol=1e-3, atol=1e-4)
        assert all(torch.equal(t, before[k]) for k, t in state.items() if k not in names)


def test_many_requests_one_of_them_done(study):
    """A request whose labels the model agrees with, beside one with a line search and several steps."""
    model, request, _ = study
    x, y = request.dataset.tensors
    corrected = predict(model, request.dataset)
    wrong = Request.correct((x, y), request.corrected)
    agreed = Request.correct((x, y), (x, corrected)) if not torch.equal(corrected, y) else wrong
    done, applied = SecondOrder(steps=2).many(model, [agreed, wrong])
    assert not done.applied
    assert "predicts every corrected label already" in done.reason
    assert applied.applied
    assert len(applied.info["steps"]) == 2
    assert applied.loss_after < applied.loss_before


def test_many_clear_errors(study):
    model, request, _ = study
    x, y = request.dataset.tensors
    with pytest.raises(ValueError, match="requests: is empty"):
        SecondOrder().many(model, [])
    with pytest.raises(ValueError, match="requests: have different datasets"):
        SecondOrder().many(model, [request, Request.remove((x.clone(), y), [0])])


def test_indefinite_curvature_is_not_applied(study):
    model, request, _ = study
    for outcome in (
        SecondOrder(ConjugateGradient(tolerance=1e-6), kind="hessian")(model, request),
        *SecondOrder(ConjugateGradient(tolerance=1e-6), kind="hessian").many(model, [request]),
    ):
        assert not outcome.applied
        assert "the system is not positive definite" in outcome.reason
        assert "use damping=" in outcome.reason


@pytest.mark.parametrize("params", [None, "last:2"])
@pytest.mark.parametrize("method", [SSD(), FirstOrder(), SecondOrder()], ids=lambda m: type(m).__name__)
def test_train_mode_is_refused_where_it_matters(study, method, params):
    model, request, _ = study
    with pytest.raises(ValueError, match="BatchNorm1d '2' is in train mode"):
        dataclasses.replace(method, params=params)(copy.deepcopy(model).train(), request)


def test_results_depend_on_the_seed_alone(study):
    model, request, _ = study
    for method in (FineTune(seed=1), FirstOrder(points_per_step=10, seed=1), Retrain(epochs=2, seed=1)):
        a, b = (method(model, request).model.state_dict() for _ in range(2))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_random_state_is_left_alone(study):
    model, request, _ = study
    before = torch.get_rng_state()
    hessian = SecondOrder(ConjugateGradient(), kind="hessian")
    for method in (Retrain(epochs=1), FineTune(), FirstOrder(steps=1), SecondOrder(), hessian):
        method(model, request)
    assert torch.equal(torch.get_rng_state(), before)


def test_retrain_with_a_factory(study):
    _, request, _ = study

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(self.scale * x)

    with pytest.raises(ValueError, match="parameter 'scale' of Scaled is not initialised by any reset_parameters"):
        Retrain(epochs=1)(Scaled(), request)
    assert accuracy(Retrain(epochs=20, lr=1e-2, factory=Scaled)(Scaled(), request).model, request.target) > 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FirstOrder(tau=-1.0), "tau is -1.0, expected a number > 0 or 'auto'"),
        (lambda: FirstOrder(steps=0), "steps is 0"),
        (lambda: FirstOrder(points="all"), "points is 'all', expected 'predicted' or 'forget'"),
        (lambda: SecondOrder(step=math.nan), "step is nan"),
        (lambda: SSD(alpha="large"), "alpha is 'large', expected a number or 'auto'"),
        (lambda: SSD(lam=-1.0), "lam is -1.0"),
        (lambda: SSD(fisher_type="true"), "fisher_type is 'true'"),
        (lambda: Training(0), "epochs is 0"),
        (lambda: Training(1, lr=-1.0), "lr is -1.0"),
    ],
)
def test_clear_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
