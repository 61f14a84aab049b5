"""Labels of the model's own for answers of yes or no and for values, against single labels and their outcomes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import losses
from unlearnx.curvature import EKFAC, CurvatureOperator, fisher_diagonal

EXACT = dict(rtol=1e-8, atol=1e-10)


class Sequence(nn.Module):
    """A number for every position, without exchange between positions."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.hidden(x[:, None] * torch.arange(1, 4).to(x)[:, None]))).squeeze(2)


def network(outputs):
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, outputs))


def one_logit():
    return nn.Sequential(network(1), nn.Flatten(0))


CASES = {  # loss, model, labels, whether they are yes or no, and what the loss takes each one's times
    "one answer": (losses.binary_cross_entropy, one_logit, lambda: torch.randint(2, (5,)), True, 1.0),
    "one answer, torch's": (nn.BCEWithLogitsLoss(), lambda: network(1), lambda: torch.rand(5, 1), True, 1.0),
    "answers": (F.binary_cross_entropy_with_logits, lambda: network(3), lambda: torch.rand(5, 3), True, 1 / 3),
    "probabilities": (
        nn.BCELoss(reduction="sum"),
        lambda: nn.Sequential(network(3), nn.Sigmoid()),
        lambda: torch.rand(5, 3),
        True,
        1.0,
    ),
    "values": (nn.MSELoss(), lambda: network(3), lambda: torch.randn(5, 3), False, 1 / 3),
    "one value": (losses.mse, one_logit, lambda: torch.randn(5), False, 1.0),
    "a value for every position": (F.mse_loss, Sequence, lambda: torch.randn(5, 3), False, 1 / 3),
}


def problem(name):
    torch.manual_seed(0)
    loss, build, labels, answers, factor = CASES[name]
    y = labels()
    return (
        build().double(),
        torch.randn(5, 6).double(),
        y.double() if y.is_floating_point() else y,
        loss,
        answers,
        factor,
    )


def expected(model, x, answers, factor, logits):
    """Every outcome of every label by a backward pass of its own; two values have the moments of a distribution's."""
    params = dict(model.named_parameters())
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for i in range(len(x)):
        for output in model(x[i : i + 1]).flatten():
            mean = float(output.detach().sigmoid() if answers and logits else output.detach())
            outcomes = {0.0: 1 - mean, 1.0: mean} if answers else {mean - 0.5**0.5: 0.5, mean + 0.5**0.5: 0.5}
            for label, probability in outcomes.items():
                own = (
                    (F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy)
                    if answers
                    else F.mse_loss
                )
                loss = factor * own(output, torch.tensor(label, dtype=output.dtype))
                for n, g in zip(
                    params, torch.autograd.grad(loss, list(params.values()), retain_graph=True), strict=True
                ):
                    total[n] += probability * g.square() / len(x)
    return total


@pytest.mark.parametrize("name", CASES)
def test_exact(name):
    model, x, y, loss, answers, factor = problem(name)
    want = expected(model, x, answers, factor, name != "probabilities")
    found = fisher_diagonal(model, loss, (x, y), fisher_type="exact", batch_size=2)
    for n, t in want.items():
        torch.testing.assert_close(found[n], t, **EXACT)
    factors = EKFAC().fit(model, loss, (x, y), fisher_type="exact", batch_size=2)
    assert factors.trace() == pytest.approx(sum(float(t.sum()) for t in want.values()), rel=1e-10)
    if factor == 1.0:  # the loss is a negative log-likelihood
        curvature = CurvatureOperator(model, loss, (x, y)).to_scipy() if name != "probabilities" else None
        if curvature is not None:
            diagonal = torch.from_numpy(curvature @ torch.eye(curvature.shape[0]).double().numpy()).diagonal()
            torch.testing.assert_close(torch.cat([found[n].flatten() for n in want]), diagonal, **EXACT)


@pytest.mark.parametrize("name", ["one answer", "answers", "values"])
def test_mc_approaches_exact(name):
    model, x, y, loss, *_ = problem(name)
    exact = fisher_diagonal(model, loss, (x, y), fisher_type="exact")
    many = x.repeat(2000, 1), y.repeat(2000, *[1] * (y.dim() - 1))
    settings = dict(fisher_type="mc", batch_size=5000, generator=torch.Generator().manual_seed(0))
    drawn = fisher_diagonal(model, loss, many, **settings)
    for n, t in exact.items():
        torch.testing.assert_close(drawn[n], t, rtol=0.1, atol=0.02 * t.max().item())


def test_unlabelled_answers_count_nowhere():
    """As those of another sample would: a sample with one answer has the loss of that answer."""
    model, x, *_ = problem("answers")
    y = torch.tensor([[1, -100, -100]] * 5)
    first = nn.Sequential(model, nn.Unflatten(1, (1, 3)), nn.Flatten())
    for kind in ("exact", "mc"):
        settings = dict(fisher_type=kind, generator=torch.Generator().manual_seed(0))
        found = fisher_diagonal(first, losses.binary_cross_entropy, (x, y), **settings)["0.2.weight"]
        assert found[0].min() > 0
        assert not found[1:].any()


def test_no_likelihood():
    model, x, y, *_ = problem("answers")
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.ones(3).double())
    assert fisher_diagonal(model, loss, (x, y), fisher_type="mc")["2.bias"].min() > 0
    with pytest.raises(ValueError, match="loss_fn: has pos_weight"):
        fisher_diagonal(model, loss, (x, y), fisher_type="exact")
