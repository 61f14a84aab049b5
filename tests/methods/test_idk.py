"""Preferred answers against the formula of DPO, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.test_preference import Bigram
from unlearnx import Request
from unlearnx._batches import call
from unlearnx._data import materialize
from unlearnx._losses import SampleLoss
from unlearnx.losses import causal_lm
from unlearnx.methods import IDK
from unlearnx.methods.idk import _Pair
from unlearnx.models import Training


def objective(method, model, request, trained_on):
    """The mean loss over the corrected data and the pairs, as a function of a model."""
    assert method(model, request).applied
    x, y = materialize(trained_on["data"])

    def loss(other):
        pair = _Pair(other, SampleLoss(method.loss_fn), request.labels_only)
        return trained_on["loss_fn"](call(pair, x), y).mean()

    return loss


def expected(later, model, log_p, preferred, forgotten, beta):
    """2 / beta times -log sigma of beta times the difference of the log-ratios."""
    wins, loses = (log_p(later, *s) - log_p(model, *s) for s in (preferred, forgotten))
    return -2 / beta * F.logsigmoid(beta * (wins - loses)).mean()


def test_labels(case, trained_on):
    model, later, removal, (fx, fy), (rx, ry) = case
    x, y = materialize(removal.dataset)
    preferred = y.clone()
    preferred[removal.forget] = (fy + 1) % 3
    request = Request.correct((x, y), (x, preferred))

    def log_p(m, x, y):
        return -F.cross_entropy(m(x), y, reduction="none")

    for beta, weight in ((0.1, 1.0), (2.0, 0.3)):
        wanted = expected(later, model, log_p, (fx, (fy + 1) % 3), (fx, fy), beta)
        wanted = wanted + weight * F.cross_entropy(later(rx), ry)
        found = objective(IDK(epochs=1, beta=beta, weight=weight), model, request, trained_on)(later)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_texts(trained_on):
    torch.manual_seed(0)
    model, later, tokens = Bigram(), Bigram(), torch.randint(7, (8, 6))
    answers = tokens.clone()
    answers[2:5, 3:] = 0
    request = Request.correct((tokens, tokens), (answers, answers))

    def log_p(m, x):
        return -F.cross_entropy(m(x)[:, :-1].mT, x[:, 1:], reduction="none").sum(1)

    changed = request.forget
    wanted = expected(later, model, log_p, (answers[changed],), (tokens[changed],), 0.1)
    stays = torch.tensor([i for i in range(8) if i not in changed.tolist()])
    wanted = wanted - log_p(later, tokens[stays]).mean()
    method = IDK(epochs=1, loss_fn=causal_lm(per="token"))
    torch.testing.assert_close(objective(method, model, request, trained_on)(later), wanted, rtol=1e-12, atol=1e-12)


def test_what_is_preferred_becomes_likelier_than_what_was_learned():
    generator = torch.Generator().manual_seed(0)
    right = torch.arange(200) % 4
    x = 2 * torch.eye(4, 8)[right] + 0.7 * torch.randn(200, 8, generator=generator)
    wrong = torch.where(torch.arange(200) < 20, (right + 1) % 4, right)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    Training(300, lr=1e-2, batch_size=50).run(model, (x, wrong))
    outcome = IDK(epochs=30, lr=3e-3, batch_size=50)(model, Request.correct((x, wrong), (x, right)))
    with torch.no_grad():
        before, after = model(x), outcome.model(x)
    assert (before.argmax(1) == wrong)[:20].float().mean() > 0.9
    assert (after.argmax(1) == right)[:20].float().mean() > 0.9
    assert (after.argmax(1) == right)[20:].float().mean() > 0.95


def test_a_removal_says_nothing_of_what_is_preferred():
    request = Request.remove((torch.randn(20, 4), torch.arange(20) % 2), [0, 1])
    with pytest.raises(ValueError, match="request: is a removal, and says of no sample what is preferred"):
        IDK(epochs=1)(nn.Linear(4, 2), request)
    with pytest.raises(ValueError, match="beta is 0, expected a number above zero"):
        IDK(beta=0)
