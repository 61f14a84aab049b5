"""Functions whose derivatives are computed from their inputs, and the cross-entropy, against autograd."""

from itertools import product

import pytest
import torch
from torch.func import jvp, vjp
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnx.curvature import CurvatureOperator, blocks, fisher_diagonal
from unlearnx.curvature.double_backward import TwiceDifferentiable
from unlearnx.curvature.layers import Derivatives
from unlearnx.losses import causal_lm
from unlearnx.ops._recording import Recording

TOKENS, MASK = torch.tensor([[0, 1], [3, 3]]), torch.arange(35).view(5, 7) % 3 > 0
ADDED = torch.linspace(-2, 2, 70, dtype=torch.float64).view(2, 1, 5, 7)
HEADS, KEYS = (2, 4, 5, 3), (2, 4, 7, 3)
attention = F.scaled_dot_product_attention
CALLS = {
    "mul": (lambda a, b: a * b, (3, 4), (3, 4)),
    "mul, broadcast": (lambda a, b: a * b, (2, 3, 4), (4,)),
    "mul, broadcast the other way": (torch.mul, (4,), (2, 3, 4)),
    "mul, both broadcast": (torch.mul, (3, 1), (1, 4)),
    "square": (lambda x: x.pow(2), (3, 4)),
    "power": (lambda x: torch.pow(x, 3.0), (3, 4)),
    "silu": (F.silu, (3, 4)),
    "gelu": (F.gelu, (3, 4)),
    "gelu, by tanh": (lambda x: F.gelu(x, approximate="tanh"), (3, 4)),
    "tanh": (torch.tanh, (3, 4)),
    "layer norm": (lambda x, weight, bias: F.layer_norm(x, (4,), weight, bias), (2, 3, 4), (4,), (4,)),
    "layer norm without a bias": (lambda x, weight: F.layer_norm(x, (4,), weight), (2, 3, 4), (4,)),
    "embedding": (lambda w: F.embedding(TOKENS, w), (4, 5)),
    "attention": (attention, HEADS, KEYS, KEYS),
    "attention, masked": (lambda *x: attention(*x, MASK, scale=0.3), HEADS, KEYS, KEYS),
    "attention, mask added": (lambda *x: attention(*x, ADDED), HEADS, KEYS, KEYS),
    "attention, causal": (lambda *x: attention(*x, is_causal=True), HEADS, HEADS, HEADS),
    "attention, in groups": (lambda *x: attention(*x, enable_gqa=True), HEADS, (2, 2, 7, 3), (2, 2, 7, 3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_both_products(name):
    """With changes of some of the inputs, and of all."""
    call, *shapes = CALLS[name]
    xs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    flags = Recording()
    with TwiceDifferentiable(Derivatives(flags, linear=True)), sdpa_kernel(SDPBackend.MATH):
        y = call(*xs)
    assert y.grad_fn.name() == "_ForwardBackward", "torch's own function ran"
    dy, changes = torch.randn_like(y), [torch.randn_like(x) for x in xs]
    given = [t.clone() for t in (dy, *changes)]

    def plain(*xs):
        with sdpa_kernel(SDPBackend.MATH):
            return call(*xs)

    plain_xs = tuple(x.detach() for x in xs)
    torch.testing.assert_close(y.detach(), plain(*plain_xs))
    gradients = torch.autograd.grad(y, xs, dy, retain_graph=True)
    for got, expected in zip(gradients, vjp(plain, *plain_xs)[1](dy), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    flags.recording, flags.values = True, False
    u = torch.zeros_like(y, requires_grad=True)
    transposed = torch.autograd.grad(y, xs, u, create_graph=True)
    for chosen in product((False, True), repeat=len(xs)):
        if any(chosen):
            some = [(t, v) for t, v, used in zip(transposed, changes, chosen, strict=True) if used]
            (tangent,) = torch.autograd.grad([t for t, _ in some], u, [v for _, v in some], retain_graph=True)
            full = tuple(v if used else torch.zeros_like(v) for v, used in zip(changes, chosen, strict=True))
            torch.testing.assert_close(tangent, jvp(plain, plain_xs, full)[1], rtol=1e-10, atol=1e-12)
    assert all(map(torch.equal, given, (dy, *changes)))


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(("layer norm", "embedding"))])
@pytest.mark.parametrize("last", ["activation", "parameter"])
def test_second_derivatives(name, last):
    """Of some of the gradients, and of all; the values of a parameter's are not used."""
    call, *shapes = CALLS[name]
    xs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    given = xs if last == "parameter" else [*xs[:-1], xs[-1] * 1]
    given = [x * 1 for x in given[:-1]] + given[-1:]
    flags = Recording()
    with sdpa_kernel(SDPBackend.MATH):
        expected = call(*given)
        with TwiceDifferentiable(Derivatives(flags)):
            y = call(*given)
    assert y.grad_fn.name() == "_ForwardBackward", "torch's own function ran"
    dy = torch.randn_like(y, requires_grad=True)
    flags.recording = True
    found = torch.autograd.grad(y, given, dy, create_graph=True)
    with sdpa_kernel(SDPBackend.MATH):
        plain = torch.autograd.grad(expected, given, dy, create_graph=True)
    for got, true, x in zip(found, plain, given, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(true) if x.is_leaf else true, rtol=1e-10, atol=1e-12)
    changes = [torch.randn_like(x) for x in xs]
    before = [t.clone() for t in changes]
    for chosen in product((False, True), repeat=len(xs)):
        if any(chosen):

            def again(gradients, chosen=chosen):
                some = [(t, v) for t, v, used in zip(gradients, changes, chosen, strict=True) if used]
                settings = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
                return torch.autograd.grad([t for t, _ in some], [dy, *given], [v for _, v in some], **settings)

            torch.testing.assert_close(again(found), again(plain), rtol=1e-9, atol=1e-11)
    assert all(map(torch.equal, before, changes))


DEPENDENT = {
    "product with itself": lambda x: x * x,
    "gate": lambda x: x * torch.tanh(x),
    "entropy": lambda x: -x.softmax(-1) * x.log_softmax(-1),
    "focal loss": lambda x: (1 - x.softmax(-1)).pow(2) * x.log_softmax(-1),
    "attention to itself": lambda x: attention(*(x.view(1, 1, 3, 4),) * 3),
    "norm with a weight from the input": lambda x: F.layer_norm(x, (4,), x.mean(0)),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_inputs_that_depend_on_each_other(name):
    """What a function gives one input does not count what reaches it by another."""
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64)

    def derivatives():
        y = DEPENDENT[name](x).view(3, 4)
        (slope,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
        return slope, *torch.autograd.grad(slope.pow(3).sum(), x)

    with sdpa_kernel(SDPBackend.MATH):
        expected = derivatives()
        with TwiceDifferentiable(Derivatives(Recording())):
            found = derivatives()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_loss_of_products(kind):
    """Focal loss with a confidence penalty, against the dense matrix; softmax regression, of which both are equal."""

    def loss_fn(output, y):
        log_p = output.log_softmax(1)
        p = log_p.exp()
        losses = F.cross_entropy(output, y, reduction="none")
        return (1 - (-losses).exp()) ** 2 * losses + 0.1 * (p * log_p).sum(1)

    model = torch.nn.Linear(3, 4).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 4
    w, v = model.weight.detach(), torch.randn(4, 3, dtype=torch.float64)
    expected = torch.autograd.functional.hvp(lambda w: loss_fn(F.linear(x, w, model.bias.detach()), y).mean(), w, v)[1]
    operator = CurvatureOperator(model, loss_fn, (x, y), kind=kind, params=["weight"])
    torch.testing.assert_close(operator.matvec({"weight": v})["weight"], expected)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_loss_that_runs_under_vmap_itself(kind):
    def each(output, y):
        return torch.vmap(lambda o, t: F.cross_entropy(o[None], t[None]))(output, y)

    model, data = torch.nn.Linear(3, 4), (torch.randn(9, 3), torch.arange(9) % 4)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    expected = CurvatureOperator(model, F.cross_entropy, data, kind=kind).matvec(v)
    for name, t in CurvatureOperator(model, each, data, kind=kind).matvec(v).items():
        torch.testing.assert_close(t, expected[name])
    fisher = fisher_diagonal(model, each, data)
    torch.testing.assert_close(fisher["bias"], fisher_diagonal(model, F.cross_entropy, data)["bias"])


def test_attention_is_kept_by_its_inputs():
    """Neither its weights, which grow with the square of the length, nor their gradients are in the graph."""

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 6)

        def forward(self, x):
            return attention(*self.layer(x).chunk(3, -1)).mean(1)

    model, x = Mixed(), torch.randn(4, 200, 2)
    operator = CurvatureOperator(model, F.cross_entropy, (x, torch.zeros(4, dtype=torch.int64)), kind="hessian")
    operator.matvec({name: torch.randn_like(p) for name, p in model.named_parameters()})
    (batch,) = operator.rows._kept.values()
    assert batch.bytes() < 4 * 200 * 200 * 4


def test_padding_has_no_gradient():
    """As torch has it, whichever way padding is counted."""
    for padding in (3, -1):
        model = torch.nn.Sequential(torch.nn.Embedding(4, 3, padding_idx=padding), torch.nn.Flatten()).double()
        y = torch.tensor([0, 5])
        v = {"0.weight": torch.randn(4, 3, dtype=torch.float64)}
        product = CurvatureOperator(model, F.cross_entropy, (TOKENS, y), kind="hessian").matvec(v)["0.weight"]
        weight = model[0].weight.detach()

        def loss(w, padding=padding):
            return F.cross_entropy(F.embedding(TOKENS, w, padding).flatten(1), TOKENS.new_tensor([0, 5]))

        masked = v["0.weight"].clone()
        masked[padding] = 0
        expected = torch.autograd.functional.hvp(loss, weight, masked)[1]
        torch.testing.assert_close(product, expected)
        assert not product[padding].any()


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 7), (2, 3, 2, 7)])
def test_cross_entropy(shape, block, monkeypatch):
    """Three derivatives, in one block or in many."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    scores = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, shape[:-1])
    labels.flatten()[::3] = -100
    weight = torch.rand(shape[:-1], dtype=torch.float64)

    def ours(scores):
        with TwiceDifferentiable(Derivatives(Recording())):
            return F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none")

    def plain(scores):
        return F.cross_entropy(scores.movedim(-1, 1), labels, reduction="none")

    def third(losses):
        (slope,) = torch.autograd.grad((losses * weight).sum(), scores, create_graph=True)
        (curved,) = torch.autograd.grad(slope.pow(2).sum(), scores, create_graph=True)
        return torch.autograd.grad(curved.pow(3).sum(), scores)[0]

    assert ours(scores).grad_fn.name() == "_LossesBackward"
    torch.testing.assert_close(ours(scores), plain(scores))
    assert torch.autograd.gradcheck(ours, scores)
    assert torch.autograd.gradgradcheck(ours, scores)
    torch.testing.assert_close(third(ours(scores)), third(plain(scores)))


def test_cross_entropy_rounds_as_torch_does():
    """Bit by bit: a few millionths of a probability are hundreds of them of what a deep network makes of it."""
    scores = 5 * torch.randn(40, 9000)
    labels, weight = torch.randint(9000, (40,)), torch.rand(40)
    labels[::3] = -100

    def slopes():
        leaf = scores.clone().requires_grad_()
        losses = F.cross_entropy(leaf, labels, reduction="none")
        return losses.detach(), *torch.autograd.grad(losses, leaf, weight)

    expected = slopes()
    with TwiceDifferentiable(Derivatives(Recording())):
        for got, wanted in zip(slopes(), expected, strict=True):
            assert torch.equal(got, wanted)


def test_reductions_and_wrong_labels_are_those_of_torch():
    scores, labels = torch.randn(4, 5, 3, requires_grad=True), torch.randint(5, (4, 3))
    labels[0] = 2
    with TwiceDifferentiable(Derivatives(Recording())):
        for settings in ({}, {"reduction": "sum"}, {"ignore_index": 2}, {"label_smoothing": 0.1}):
            torch.testing.assert_close(
                F.cross_entropy(scores, labels, **settings), F.cross_entropy(scores.detach(), labels, **settings)
            )
        with pytest.raises(IndexError):
            F.cross_entropy(scores, labels + 3)


def test_a_wide_head_is_kept_once():
    """Graphs hold the scores, and nothing else that is as large."""
    model = torch.nn.Sequential(torch.nn.Embedding(400, 2), torch.nn.Linear(2, 400)).double()
    x = torch.randint(400, (8, 20))
    scores = x.numel() * 400 * 8
    operator = CurvatureOperator(model, causal_lm, (x, x), kind="ggn")
    operator.matvec({name: torch.randn_like(p) for name, p in model.named_parameters()})
    (batch,) = operator.rows._kept.values()
    assert scores <= batch.bytes() <= 1.1 * scores
