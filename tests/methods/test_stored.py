"""Factors of the training data, fitted once, in the place of the retain set."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.curvature import EKFAC, Factors, fisher_diagonal, grad_difference
from unlearnx.data import load_digits
from unlearnx.methods import KFADE, SSD, FineTune, FisherMasking, Pipeline, SecondOrder, forget
from unlearnx.metrics import accuracy, mean_loss
from unlearnx.models import Training

FORGOTTEN = 3


@pytest.fixture(scope="module")
def study():
    """A perceptron of the digits, its factors, and training and test data (x, y)."""
    digits = load_digits()
    train, test = ((x.flatten(1), y) for x, y in ((digits.train_x, digits.train_y), (digits.test_x, digits.test_y)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    Training(15, lr=5e-3, batch_size=64).run(model, train)
    factors = EKFAC(fisher_type="exact").fit(model.eval(), F.cross_entropy, train)
    return model, factors, train, test


def parts(data):
    """The samples of one class, and the others."""
    x, y = data
    chosen = y == FORGOTTEN
    return (x[chosen], y[chosen]), (x[~chosen], y[~chosen])


@pytest.mark.parametrize("kind", [SSD, FisherMasking, SecondOrder])
def test_a_class_without_the_retain_set(study, kind):
    """Held-out data say what harm is done: no more to what stays than by the method that has seen that."""
    model, factors, train, test = study
    gone, stays = parts(train)
    request = Request.from_sets(forget=gone).with_held_out(parts(test)[1])
    outcome = kind(factors=factors)(model, request)
    assert outcome.applied
    assert outcome.forgotten == "yes"
    assert accuracy(outcome.model, gone) < 0.02
    seen = kind(**({} if kind is SecondOrder else {"fisher_type": "exact"}))(
        model, Request.remove_class(train, FORGOTTEN)
    )
    assert accuracy(outcome.model, stays) > accuracy(seen.model, stays) - 0.01
    assert outcome.loss_before == pytest.approx(mean_loss(model, F.cross_entropy, parts(test)[1]))


@pytest.mark.parametrize("kind", [SSD, FisherMasking, SecondOrder])
def test_the_forget_set_alone(study, kind):
    """Nothing tells how much is enough: the usual strength is taken, and harm is estimated."""
    model, factors, train, _ = study
    gone, stays = parts(train)
    outcome = kind(factors=factors)(model, Request.from_sets(forget=gone))
    assert outcome.applied
    assert outcome.forgotten == "unknown"
    assert "neither a retain set nor held-out data" in outcome.evidence["basis"]
    assert accuracy(outcome.model, gone) < accuracy(model, gone) - 0.2
    assert accuracy(outcome.model, stays) > 0.9
    assert math.isnan(outcome.loss_before)
    assert math.isnan(outcome.loss_after)
    change = {n: p - model.get_parameter(n) for n, p in outcome.model.named_parameters()}
    product = factors.matvec({n: t.detach() for n, t in change.items()})
    n, m = len(train[1]), len(gone[1])
    expected = n / (n - m) / 2 * sum(float((t * product[k]).sum()) for k, t in change.items())
    assert outcome.info["estimated_increase"] == pytest.approx(expected, rel=1e-4)


def test_forget_takes_what_factors_are_enough_for(study):
    model, factors, train, test = study
    gone, stays = parts(train)
    request = Request.from_sets(forget=gone).with_held_out(parts(test)[1])
    outcome = forget(model, request, factors=factors)
    assert outcome.forgotten == "yes"
    assert outcome.info["tried"][0]["method"] == "SSD"
    assert accuracy(outcome.model, stays) > 0.9
    alone = forget(model, gone, factors=factors)
    assert [t["method"] for t in alone.info["tried"]] == ["SSD"]  # nothing tells whether another would be better
    assert alone.applied
    assert alone.forgotten == "unknown"
    assert accuracy(alone.model, gone) < accuracy(model, gone) - 0.2
    without = EKFAC().fit(model, F.cross_entropy, train, diagonal=False)
    tried = forget(model, request, factors=without).info["tried"]
    assert "factors: hold no exact diagonal" in tried[0]["reason"]
    assert tried[1]["method"] == "SecondOrder"
    assert tried[1]["applied"]


def test_estimated_harm_is_refused(study):
    model, factors, train, _ = study
    request = Request.from_sets(forget=parts(train)[0])
    outcome = SSD(alpha=0.0, lam=0.0, factors=factors, max_increase=1e-9)(model, request)
    assert not outcome.applied
    assert "on the retain set, as the factors estimate it, would change from 0 to" in outcome.reason
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in outcome.model.named_parameters())


def test_the_direction_is_solved_with_the_factors(study):
    model, factors, train, _ = study
    gone, _ = parts(train)
    outcome = SecondOrder(factors=factors, damping=0.1, step=1.0)(model, Request.from_sets(forget=gone))
    gradient = grad_difference(model, F.cross_entropy, gone)
    solved = factors.solve({n: t / len(train[1]) for n, t in gradient.items()}, 0.1)
    for n, p in outcome.model.named_parameters():
        torch.testing.assert_close(p, model.get_parameter(n) + solved[n], rtol=1e-4, atol=1e-6)


def test_the_stored_diagonal_stands_for_the_training_data(study):
    """SSD dampens what it dampens with the importances measured as the factors were, the retain set's from theirs."""
    model, factors, train, _ = study
    gone, _ = parts(train)
    outcome = SSD(alpha=2.0, factors=factors)(model, Request.from_sets(forget=gone))
    own = fisher_diagonal(model, F.cross_entropy, gone, fisher_type="exact")
    full = factors.fisher_diagonal
    expected = {n: int((t > 2.0 * full[n]).sum()) for n, t in own.items()}
    assert outcome.info["dampened"] == expected


def test_with_a_retain_set_harm_is_measured_on_it(study):
    model, factors, train, _ = study
    request = Request.remove_class(train, FORGOTTEN)
    for outcome in (
        SecondOrder(factors=factors)(model, request),
        SecondOrder(factors=factors).many(model, [request])[0],
    ):
        assert outcome.forgotten == "yes"
        assert outcome.loss_before == pytest.approx(mean_loss(model, F.cross_entropy, request.retain_set), rel=1e-4)
        assert outcome.info["steps"][0]["solver"] == "solved with stored factors"


def test_a_part_of_the_parameters(study):
    """The parameters that may change are those of the factors; the part of the model before them runs once."""
    model, _, train, test = study
    factors = EKFAC().fit(model, F.cross_entropy, train, params="last:2")
    request = Request.from_sets(forget=parts(train)[0]).with_held_out(parts(test)[1])
    outcome = SecondOrder(factors=factors)(model, request)
    assert outcome.forgotten == "yes"
    assert torch.equal(outcome.model[0].weight, model[0].weight)
    with pytest.raises(ValueError, match=r"params: is 'last:1', expected those of the factors: 2\.weight, 2\.bias"):
        SecondOrder(factors=factors, params="last:1")(model, request)


def test_stale_factors_are_refused(study, tmp_path):
    model, factors, train, test = study
    pytest.importorskip("safetensors")
    factors.save(tmp_path / "factors.safetensors")
    read = Factors.load(tmp_path / "factors.safetensors", model)
    request = Request.from_sets(forget=parts(train)[0]).with_held_out(parts(test)[1])
    outcome = SSD(factors=read)(model, request)
    assert outcome.forgotten == "yes"
    with pytest.raises(ValueError, match="factors: were fitted for a model with other parameters or buffers, or this"):
        SSD(factors=read)(outcome.model, request)


def test_who_needs_the_retain_set(study):
    model, factors, train, _ = study
    request = Request.from_sets(forget=parts(train)[0])
    for method in (SSD(), FineTune(), Pipeline([FineTune()])):
        with pytest.raises(ValueError, match=r"request: has no retain set, which (SSD|FineTune) needs"):
            method(model, request)
    with pytest.raises(ValueError, match="request: has no retain set, which Automatic needs"):
        forget(model, request)
    for kind, options in ((SecondOrder, {"factors": factors}), (KFADE, {})):
        with pytest.raises(ValueError, match=r"damping is 0\.0, expected a number above zero"):
            kind(damping=0.0, **options)
    without = EKFAC().fit(model, F.cross_entropy, train, diagonal=False)
    with pytest.raises(ValueError, match="factors: hold no exact diagonal"):
        SSD(factors=without)(model, request)
    with pytest.raises(ValueError, match="correction: is given without a retain set"):
        Request.from_sets(forget=train, correction=train)
    with pytest.raises(ValueError, match="factors: were fitted on 1437 samples, expected more than the 1437 to forget"):
        SSD(factors=factors)(model, Request.from_sets(forget=train))
