"""Steps uphill in the metric of what stays, and their update applied again."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.curvature import EKFAC, grad_difference
from unlearnx.data import load_digits
from unlearnx.methods import KFADE, FineTune, Reapply
from unlearnx.metrics import accuracy
from unlearnx.models import Training

FORGOTTEN = 3


@pytest.fixture(scope="module")
def study():
    """A perceptron of the digits, training data (x, y), and the request to forget a class."""
    digits = load_digits()
    train = digits.train_x.flatten(1), digits.train_y
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    Training(20, lr=5e-3, batch_size=64).run(model, train)
    return model.eval(), train, Request.remove_class(train, FORGOTTEN)


def test_a_class_is_forgotten_and_nothing_else(study):
    model, _, request = study
    outcome = KFADE()(model, request)
    assert outcome.forgotten == "yes"
    assert outcome.info["forgets"]
    assert accuracy(outcome.model, request.retain_set) > accuracy(model, request.retain_set) - 0.01


def test_corrected_labels(study):
    """Old losses go up, new ones down."""
    _, (x, y), _ = study
    given = y.clone()
    given[:100] = (y[:100] + 1) % 10
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    Training(40, lr=5e-3, batch_size=64).run(model, (x, given))
    outcome = KFADE()(model.eval(), Request.correct((x, given), (x, y)))
    assert outcome.forgotten == "yes"
    assert accuracy(outcome.model, (x, y)) > accuracy(model, (x, y)) + 0.01


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_are_gauss_newton_steps(study, steps):
    """Each with the gradient where it begins, in the metric that was fitted before the first one."""
    model, train, request = study
    factors = EKFAC(fisher_type="exact").fit(model, F.cross_entropy, train)
    outcome = KFADE(step=0.5, steps=steps, damping=0.1, factors=factors)(model, request)
    walker = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    walker.load_state_dict(model.state_dict())
    for _ in range(steps):
        gradient = grad_difference(walker, F.cross_entropy, request.forget_set)
        direction = factors.solve(gradient, 0.1)
        with torch.no_grad():
            for name, p in walker.named_parameters():
                p += 0.5 / steps * direction[name] / len(train[1])
    for (name, p), q in zip(outcome.model.named_parameters(), walker.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    assert outcome.info["step"] == 0.5


def test_factors_in_the_place_of_what_stays(study):
    model, train, request = study
    factors = EKFAC(fisher_type="exact").fit(model, F.cross_entropy, train, diagonal=False)
    digits = load_digits()
    held = digits.test_y != FORGOTTEN
    alone = Request.from_sets(forget=request.forget_set)
    alone = alone.with_held_out((digits.test_x[held].flatten(1), digits.test_y[held]))
    outcome = KFADE(factors=factors)(model, alone)
    assert outcome.forgotten == "yes"
    assert accuracy(outcome.model, request.retain_set) > accuracy(model, request.retain_set) - 0.01


def test_an_update_is_applied_again(study):
    """A model that has learned the class again forgets it again, without a gradient."""
    model, train, request = study
    update = Reapply.of(model, KFADE()(model, request).model)
    changed = update(model, request).model
    relearned = FineTune(epochs=8, lr=2e-3)(changed, Request.remove(train, [0])).model
    assert accuracy(relearned, request.forget_set) > 0.8
    outcome = update(relearned, request)
    assert outcome.forgotten == "yes"
    assert outcome.gradient_evaluations == 0
    assert accuracy(outcome.model, request.retain_set) > 0.98
    whole = Reapply.of(model, changed, factor=1.0)(model, request).model
    for p, q in zip(whole.parameters(), changed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_far_too_large(study):
    model, _, request = study
    outcome = KFADE(step=1e30)(model, request)
    assert not outcome.applied
    assert outcome.reason.startswith("the mean loss on the retain set would change from")


def test_bad_arguments(study):
    model, _, request = study
    with pytest.raises(ValueError, match=r"steps is 0, expected at least 1"):
        KFADE(steps=0)
    with pytest.raises(ValueError, match="step is -1, expected a number > 0 or 'auto'"):
        KFADE(step=-1)
    with pytest.raises(ValueError, match="fisher_type is 'batch', expected one of mc, exact, empirical"):
        KFADE(fisher_type="batch")
    with pytest.raises(ValueError, match="factor is 0, expected a number > 0 or 'auto'"):
        Reapply({}, factor=0)
    with pytest.raises(ValueError, match="update: changes none of the chosen parameters"):
        Reapply.of(model, model)(model, request)
    with pytest.raises(ValueError, match=r"update: has '0\.weight' of shape \[3\], which the model has not"):
        Reapply({"0.weight": torch.ones(3)})(model, request)
    with pytest.raises(ValueError, match="after: has other parameters than before"):
        Reapply.of(model, model[0])
