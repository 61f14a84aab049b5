"""Labels of the model's own for texts and other samples of several positions, against single positions and classes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx.curvature import EKFAC, KFAC, fisher_diagonal
from unlearnx.losses import causal_lm, cross_entropy

EXACT = dict(rtol=1e-8, atol=1e-10)
TOKENS = 5


class Text(nn.Module):
    """Scores of the next token from the mean of what came before; classes last, first, or as an object has them."""

    def __init__(self, classes="last"):
        super().__init__()
        self.embedding, self.hidden, self.last = nn.Embedding(TOKENS, 4), nn.Linear(4, 3), nn.Linear(3, TOKENS)
        self.classes = classes

    def forward(self, x):
        h = torch.tanh(self.hidden(self.embedding(x)))
        h = h.cumsum(1) / torch.arange(1, x.shape[1] + 1).to(h)[:, None]
        scores = self.last(h)
        return {"last": scores, "first": scores.mT, "mapping": {"logits": scores}}[self.classes]


LOSSES = {  # where the classes are, whether labels are those of the next position, and whether the loss is their mean
    "next tokens": (causal_lm, "last", True, True),
    "next tokens, summed": (causal_lm(per="token"), "mapping", True, False),
    "ours": (cross_entropy, "mapping", False, True),
    "torch's": (F.cross_entropy, "first", False, True),
    "torch's, summed": (nn.CrossEntropyLoss(reduction="sum"), "first", False, False),
}


def problem(classes, length=4, n=3):
    """Texts whose last tokens have no label, one more in each."""
    torch.manual_seed(0)
    model, x = Text(classes).double(), torch.randint(TOKENS, (n, length))
    y = x.clone()
    for k in range(n):
        y[k, length - k :] = -100
    return model, x, y


def single_labels(model, x, y, shifted, averaged):
    """The scores for every label of every sample, and what the sample's loss takes the label's times."""
    for i in range(len(x)):
        output = model(x[i : i + 1])
        scores = output["logits"][0] if isinstance(output, dict) else output[0]
        scores = scores.T if model.classes == "first" else scores
        places = [(t, t + shifted) for t in range(len(scores) - shifted) if y[i, t + shifted] != -100]
        for t, _ in places:
            yield scores[t], 1 / len(places) if averaged else 1.0


@pytest.mark.parametrize("name", LOSSES)
def test_exact(name):
    loss, classes, shifted, averaged = LOSSES[name]
    model, x, y = problem(classes)
    params = dict(model.named_parameters())
    expected = {n: torch.zeros_like(p) for n, p in params.items()}
    outputs = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    for scores, factor in single_labels(model, x, y, shifted, averaged):
        logs = factor * scores.log_softmax(0)
        for c, p in enumerate(scores.softmax(0).tolist()):
            gradients = torch.autograd.grad(logs[c], list(params.values()), retain_graph=True)
            for n, g in zip(params, gradients, strict=True):
                expected[n] += p * g.square() / len(x)
        p = scores.softmax(0).detach()
        outputs += factor**2 * (p.diag() - p[:, None] * p) / len(x)
    found = fisher_diagonal(model, loss, (x, y), fisher_type="exact", batch_size=2)
    for n, t in expected.items():
        torch.testing.assert_close(found[n], t, **EXACT)
    factors = EKFAC().fit(model, loss, (x, y), fisher_type="exact", batch_size=2)
    assert factors.trace() == pytest.approx(sum(float(t.sum()) for t in expected.values()), rel=1e-10)
    (last,) = (b for b in KFAC().fit(model, loss, (x, y), fisher_type="exact").blocks if "last.weight" in b.names)
    (own,) = (b for b in KFAC().fit(model, loss, (x, y), fisher_type="empirical").blocks if "last.weight" in b.names)
    inputs = own.values.sum(0) / own.values.sum()  # the eigenvalues of both have the form outputs x inputs
    torch.testing.assert_close(last.values.sum(0) / last.values.sum(), inputs, **EXACT)
    torch.testing.assert_close(
        last.out @ last.values.sum(1).diag() @ last.out.T / last.values.sum(), outputs / outputs.trace(), **EXACT
    )


@pytest.mark.parametrize("name", ["next tokens", "torch's, summed"])
def test_mc_approaches_exact(name):
    loss, classes, *_ = LOSSES[name]
    model, x, y = problem(classes)
    exact = fisher_diagonal(model, loss, (x, y), fisher_type="exact")
    many = x.repeat(3000, 1), y.repeat(3000, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = fisher_diagonal(model, loss, many, fisher_type="mc", batch_size=9000, generator=generator)
    for n, t in exact.items():
        torch.testing.assert_close(drawn[n], t, rtol=0.1, atol=0.02 * t.max().item())


def test_mc_depends_neither_on_batches_nor_on_padding():
    model, x, y = problem("last")
    longer = F.pad(x, (0, 3)), F.pad(y, (0, 3), value=-100)

    def found(data, batch_size):
        generator = torch.Generator().manual_seed(1)
        return fisher_diagonal(model, causal_lm, data, fisher_type="mc", batch_size=batch_size, generator=generator)

    whole = found((x, y), None)
    for data, batch_size in (((x, y), 2), (longer, 1)):
        for n, t in found(data, batch_size).items():
            torch.testing.assert_close(t, whole[n], **EXACT)
    other = fisher_diagonal(model, causal_lm, (x, y), fisher_type="mc", generator=torch.Generator().manual_seed(2))
    assert any((other[n] - t).norm() > 1e-3 * t.norm() for n, t in whole.items())


def test_of_a_loss_of_ones_own_it_is_not_known_where_its_labels_are():
    model, x, y = problem("last")
    with pytest.raises(ValueError, match="loss_fn: it is not known where its labels are"):
        fisher_diagonal(model, lambda o, y: causal_lm(o, y), (x, y), fisher_type="mc")
