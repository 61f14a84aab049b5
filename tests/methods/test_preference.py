"""Negative preference optimisation and task vectors against their formulas, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx._data import materialize
from unlearnx._losses import counted
from unlearnx.losses import causal_lm
from unlearnx.methods import IDK, NPO, FirstOrder, NegGrad, Pipeline, SimNPO, TaskVector


def objective(method, model, request, trained_on):
    """The mean loss over all samples that stay and all that go, as a function of a model."""
    assert method(model, request).applied
    x, y = materialize(trained_on["data"])
    return lambda other: trained_on["loss_fn"](other(x), y).mean()


def test_npo(case, trained_on):
    model, later, request, (fx, fy), (rx, ry) = case
    beta, weight = 0.3, 0.7
    log_ratio = F.cross_entropy(model(fx), fy, reduction="none") - F.cross_entropy(later(fx), fy, reduction="none")
    expected = -2 / beta * F.logsigmoid(-beta * log_ratio).mean() + weight * F.cross_entropy(later(rx), ry)
    found = objective(NPO(epochs=1, beta=beta, weight=weight), model, request, trained_on)(later)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_simnpo(case, trained_on):
    model, later, request, (fx, fy), (rx, ry) = case
    beta, weight, margin = 2.0, 0.4, 0.6
    log_p = -F.cross_entropy(later(fx), fy, reduction="none")
    expected = -2 / beta * F.logsigmoid(-beta * log_p - margin).mean() + weight * F.cross_entropy(later(rx), ry)
    method = SimNPO(epochs=1, beta=beta, weight=weight, margin=margin)
    found = objective(method, model, request, trained_on)(later)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_neg_grad(case, trained_on):
    model, later, request, (fx, fy), (rx, ry) = case
    expected = 0.8 * F.cross_entropy(later(rx), ry) - 0.2 * F.cross_entropy(later(fx), fy)
    found = objective(NegGrad(epochs=1, weight=0.8), model, request, trained_on)(later)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_npo_begins_as_gradient_ascent(case, trained_on):
    """At the original model each sample's gradient is that of ascent, whatever beta is."""
    model, _, request, (fx, fy), _ = case
    expected = torch.autograd.grad(-F.cross_entropy(model(fx), fy), list(model.parameters()))
    for beta in (1e-3, 0.1, 3.0):
        loss = objective(NPO(epochs=1, beta=beta, weight=0.0), model, request, trained_on)(model)
        found = torch.autograd.grad(loss, list(model.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Embedding(7, 7).double()

    def forward(self, tokens):
        return self.scores(tokens)


def test_texts_have_sums_over_tokens(trained_on):
    """With losses by token, the ratio is that of the probabilities of whole answers."""
    torch.manual_seed(0)
    model, later, tokens = Bigram(), Bigram(), torch.randint(7, (8, 6))
    request = Request.remove((tokens, tokens), [0, 1, 2])

    def log_p(m):
        return -F.cross_entropy(m(tokens[:3])[:, :-1].mT, tokens[:3, 1:], reduction="none").sum(1)

    expected = -2 / 0.1 * F.logsigmoid(-0.1 * (log_p(later) - log_p(model))).mean()
    method = NPO(epochs=1, weight=0.0, loss_fn=causal_lm(per="token"))
    torch.testing.assert_close(objective(method, model, request, trained_on)(later), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", [NPO(epochs=1), FirstOrder(tau=1e-6), Pipeline([FirstOrder(tau=1e-6)])])
def test_harm_to_texts_is_counted_in_nats_a_token(method):
    """Whether the method's loss is their mean over the tokens or their sum: a long text is not harmed by being long."""
    torch.manual_seed(0)
    model, tokens = Bigram(), torch.randint(7, (8, 6))
    request = Request.remove((tokens, tokens), [0, 1, 2])
    given = {"loss_fn": causal_lm(per="token", ignore_index=-1)}
    if isinstance(method, Pipeline):
        method = Pipeline([replace(stage, **given) for stage in method.stages])
    else:
        method = replace(method, **given)
    outcome = method(model, request)
    assert outcome.applied
    with torch.no_grad():
        for found, other in ((outcome.loss_before, model), (outcome.loss_after, outcome.model)):
            expected = F.cross_entropy(other(tokens[3:])[:, :-1].mT, tokens[3:, 1:])
            assert found == pytest.approx(float(expected), abs=1e-12)


def test_the_loss_of_texts_that_a_paper_has():
    mean, total = causal_lm(ignore_index=3), causal_lm(per="token")
    for loss_fn, per in ((causal_lm, "token"), (mean, "token"), (total, "sample")):
        found = counted(loss_fn, per)
        assert found.keywords == {"ignore_index": 3 if loss_fn is mean else -100, "per": per}
    assert counted(F.cross_entropy, "token") is F.cross_entropy
    assert [kind._per for kind in (NPO, IDK, SimNPO, NegGrad)] == ["token", "token", "sample", "sample"]


def test_task_vector_leads_away_from_the_forget_set(case):
    model, _, request, (fx, fy), _ = case
    outcome = TaskVector(factor=2.0, epochs=20, lr=1e-2, params="last:2", max_increase=10)(model, request)
    assert F.cross_entropy(outcome.model(fx), fy) > F.cross_entropy(model(fx), fy)
    assert torch.equal(outcome.model[0].weight, model[0].weight)
    assert outcome.info["factor"] == 2.0
    assert outcome.gradient_evaluations == 20 * 7


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NPO(beta=0.0), "beta is 0.0, expected a number above zero"),
        (lambda: NPO(beta=-1.0), "beta is -1.0"),
        (lambda: SimNPO(margin=-1.0), "margin is -1.0"),
        (lambda: NPO(weight=-1.0), "weight is -1.0"),
        (lambda: TaskVector(factor=0.0), "factor is 0.0, expected a number > 0 or 'auto'"),
        (lambda: TaskVector(epochs=0), "epochs is 0"),
    ],
)
def test_clear_errors(make, said):
    with pytest.raises(ValueError, match=said):
        make()
