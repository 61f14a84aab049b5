"""Engines on models of any inputs and outputs, in float64 against a loop over single samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from unlearnx import losses
from unlearnx._batches import arguments, joined, rows, take
from unlearnx.attribution import ewc_influence, linear_influence
from unlearnx.curvature import (
    CurvatureOperator,
    fisher_diagonal,
    grad_difference,
    per_sample_grad_difference,
    per_sample_grad_dot,
)

N, T, TOKENS, CLASSES = 10, 5, 7, 4


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    cache: object = None


class Text(nn.Module):
    """Tokens and a mask in, as models of HuggingFace: positions are the same for all samples."""

    def __init__(self, kind: str):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(TOKENS, 6), nn.Embedding(T, 6)
        self.mix, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.head, self.kind = nn.Linear(6, TOKENS if kind == "lm" else CLASSES), kind

    def forward(self, input_ids, attention_mask=None, flag=None, scale=None):
        h = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None])
        h = self.norm(torch.tanh(self.mix(h)))
        if self.kind != "lm":
            mask = attention_mask[..., None].to(h)
            h = (h * mask).sum(1) / mask.sum(1)
        assert scale is None or (scale.shape == (1,) and flag)
        return Output(self.head(h), h, cache=object())


class Two(nn.Module):
    """Two inputs, and two outputs of which the first is the scores."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(2, 5), nn.Linear(5, CLASSES)

    def forward(self, first, second):
        h = torch.tanh(self.a(first) * self.b(second))
        return self.c(h), h


class Squeezed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze()


def tokens() -> torch.Tensor:
    return torch.randint(1, TOKENS, (N, T))


def mask() -> torch.Tensor:
    return (torch.arange(T) <= torch.arange(N)[:, None] % T).long()


def ignoring(y: torch.Tensor) -> torch.Tensor:
    return y.where(torch.rand(y.shape) > 0.4, -100)


def text_classifier():
    x = {"input_ids": tokens(), "attention_mask": mask(), "flag": True, "scale": torch.ones(1)}
    return Text("classes"), x, torch.arange(N) % CLASSES, lambda o, y: F.cross_entropy(o.logits, y)


def default_loss():
    return *text_classifier()[:3], F.cross_entropy


def language_model():
    x = {"input_ids": tokens(), "attention_mask": mask()}
    return Text("lm"), x, ignoring(x["input_ids"]), losses.causal_lm


def per_token():
    return *language_model()[:3], losses.causal_lm(per="token")


def tuples():
    x = (torch.randn(N, 3).double(), torch.randn(N, 2).double())
    return Two(), x, torch.arange(N) % CLASSES, lambda o, y: F.cross_entropy(o[0], y, reduction="sum")


def two_outputs():
    """A loss of both outputs and of a nest of labels."""
    model, x, y, _ = tuples()
    labels = {"class": y, "goal": [torch.randn(N, 5).double()]}
    return model, x, labels, lambda o, y: F.cross_entropy(o[0], y["class"]) + F.mse_loss(o[1], y["goal"][0])


def dense(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))


def weighted():
    weight = torch.tensor([0.1, 5.0, 1.0, 2.0], dtype=torch.float64)
    y = ignoring(torch.arange(N).sort().values * CLASSES // N)
    return dense(CLASSES), torch.randn(N, 3).double(), y, nn.CrossEntropyLoss(weight, label_smoothing=0.1)


def single_logit():
    model = Squeezed(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    loss = lambda o, y: F.binary_cross_entropy_with_logits(o.view(-1), y.view(-1))  # noqa: E731
    return model, torch.randn(N, 3).double(), (torch.arange(N) % 2).double(), loss


def multi_label():
    return dense(3), torch.randn(N, 3).double(), torch.randint(0, 2, (N, 3)).double(), nn.BCEWithLogitsLoss()


def regression():
    return dense(2), torch.randn(N, 3).double(), torch.randn(N, 2).double(), F.mse_loss


def branching():
    """Neither the model nor the loss can be followed by vmap."""

    class Branching(Two):
        def forward(self, first, second):
            return super().forward(first, second) if first.sum().item() < 1e9 else None

    _, x, y, _ = tuples()
    return Branching(), x, y, lambda o, y: F.cross_entropy(o[0], y) if y.max() >= 0 else o[0].sum()


CASES: dict[str, Callable] = {
    f.__name__: f
    for f in (
        text_classifier,
        default_loss,
        language_model,
        per_token,
        tuples,
        two_outputs,
        weighted,
        single_logit,
        multi_label,
        regression,
        branching,
    )
}


def build(name: str):
    torch.manual_seed(0)
    model, x, y, loss = CASES[name]()
    return model.double().eval(), x, y, loss


def alone(name: str, output, y):
    """The loss of one sample, from the definitions in torch."""
    if name == "weighted":
        weight = torch.tensor([0.1, 5.0, 1.0, 2.0], dtype=torch.float64)
        return F.cross_entropy(output, y, weight, label_smoothing=0.1, reduction="none").sum()
    if name in ("language_model", "per_token"):
        each = F.cross_entropy(output.logits[0, :-1], y[0, 1:], reduction="none")
        return each.sum() if name == "per_token" else each.sum() / (y[:, 1:] != -100).sum().clamp(min=1)
    if name == "default_loss":
        return F.cross_entropy(output.logits, y)
    return CASES[name]()[3](output, y)


def reference(name: str, model, x, y):
    """Gradients of each sample, (N, *shape), by running it alone."""
    result = []
    for i in range(N):
        s = slice(i, i + 1)
        args, named = arguments(take(x, s))
        loss = alone(name, rows(model(*args, **named), 1), take(y, s))
        result.append(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))
    return {
        k: torch.stack(column)
        for k, column in zip(dict(model.named_parameters()), zip(*result, strict=True), strict=True)
    }


def close(got: dict, expected: dict) -> None:
    for k, t in expected.items():
        torch.testing.assert_close(got[k], t, msg=lambda m, k=k: f"{k}: {m}", rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    model, x, y, loss = build(name)
    each = reference(name, model, x, y)
    close(per_sample_grad_difference(model, loss, (x, y)), each)
    close(grad_difference(model, loss, (x, y), batch_size=3), {k: t.sum(0) for k, t in each.items()})
    squares = {k: t.square().mean(0) for k, t in each.items()}
    close(fisher_diagonal(model, loss, (x, y), batch_size=3), squares)
    direction = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    dots = sum((t * direction[k]).flatten(1).sum(1) for k, t in each.items())
    torch.testing.assert_close(per_sample_grad_dot(model, loss, (x, y), direction, batch_size=3), dots)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_curvature(name, kind):
    model, x, y, loss = build(name)
    operator = CurvatureOperator(model, loss, (x, y), kind=kind, batch_size=3)
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    names = list(v)

    def total(values, x, y):
        args, named = arguments(x)
        return alone(name, rows(functional_call(model, values, args, named), 1), y) / N

    expected = {k: torch.zeros_like(t) for k, t in v.items()}
    values = {k: p.detach().requires_grad_() for k, p in model.named_parameters()}
    for i in range(N):
        sample = take(x, slice(i, i + 1)), take(y, slice(i, i + 1))
        parts = hessian_product(total, values, sample, v) if kind == "hessian" else ggn_product(name, model, sample, v)
        for k, part in zip(names, parts, strict=True):
            expected[k] += part
    close(operator.matvec(v), expected)


def hessian_product(total, values, sample, v):
    first = torch.autograd.grad(
        total(values, *sample), list(values.values()), create_graph=True, materialize_grads=True
    )
    inner = sum((g * t).sum() for g, t in zip(first, v.values(), strict=True))
    return torch.autograd.grad(inner, list(values.values()), materialize_grads=True)


def ggn_product(name, model, sample, v):
    """``J^T L J v`` with the Jacobian of everything that the model returns."""
    x, y = sample
    args, named = arguments(x)

    def flat(*values):
        output = functional_call(model, dict(zip(v, values, strict=True)), args, named)
        return torch.cat([t.flatten() for t in parts_of(rows(output, 1))])

    template = rows(model(*args, **named), 1)

    def loss_of(vector):
        return alone(name, assembled(template, vector), y) / N

    values = tuple(p.detach() for p in model.parameters())
    output, tangent = torch.autograd.functional.jvp(flat, values, tuple(v.values()))
    curved = torch.autograd.functional.hvp(loss_of, output, tangent)[1]
    return torch.autograd.functional.vjp(flat, values, curved)[1]


def parts_of(output):
    if isinstance(output, Output):
        return [output.logits]
    return list(output) if isinstance(output, tuple) else [output]


def assembled(template, vector):
    parts = parts_of(template)
    split = [t.view_as(p) for t, p in zip(vector.split([p.numel() for p in parts]), parts, strict=True)]
    if isinstance(template, Output):
        return Output(split[0])
    return tuple(split) if isinstance(template, tuple) else split[0]


@pytest.mark.parametrize("name", ["text_classifier", "tuples", "weighted"])
def test_influence(name):
    model, x, y, loss = build(name)
    failures = take(x, slice(0, 3)), take(y, slice(0, 3))
    each = reference(name, model, x, y)
    scores = linear_influence(model, loss, (x, y), failures, damping=0.1)
    fisher = {k: N * (t.square().mean(0) + 0.1) for k, t in each.items()}
    step = {k: reference(name, model, x, y)[k][:3].sum(0) / fisher[k] for k in each}
    dots = sum((t * step[k]).flatten(1).sum(1) for k, t in each.items())
    torch.testing.assert_close(scores / scores.norm(), -dots / dots.norm())
    assert ewc_influence(model, loss, (x, y), failures, steps=2).isfinite().all()


@pytest.mark.parametrize("fisher_type", ["mc", "exact"])
def test_samples_without_a_label_have_no_fisher_information(fisher_type):
    model, x, y, loss = build("weighted")
    labelled = y != -100
    got = fisher_diagonal(model, loss, (x, y), fisher_type=fisher_type, reduction="sum")
    kept = fisher_diagonal(model, loss, (x[labelled], y[labelled]), fisher_type="exact", reduction="sum")
    if fisher_type == "exact":
        close(got, kept)
    only = fisher_diagonal(model, loss, (x, torch.full_like(y, -100)), fisher_type=fisher_type)
    assert all((t == 0).all() for t in only.values())


def test_corrected_labels_share_a_pass():
    model, x, y, loss = build("text_classifier")
    new = (y + 1) % CLASSES
    difference = grad_difference(model, loss, (x, y), (x, new))
    before, after = (grad_difference(model, loss, (x, labels)) for labels in (y, new))
    close(difference, {k: after[k] - before[k] for k in before})


def test_batches_of_a_loader_may_differ_in_length():
    _, x, y, _ = build("language_model")

    def padded(length: int):
        return {"input_ids": F.pad(x["input_ids"], (0, length)), "attention_mask": None}, F.pad(
            y, (0, length), value=-100
        )

    class Short(Text):
        def forward(self, input_ids, attention_mask=None):
            h = torch.tanh(self.mix(self.tokens(input_ids)))
            return Output(self.head(h))

    model = Short("lm").double().eval()
    total = grad_difference(model, losses.causal_lm, padded(0))
    close(grad_difference(model, losses.causal_lm, padded(3)), total)
    samples = [padded(i) for i in range(2)]
    parts = [grad_difference(model, partial(losses.causal_lm), (take(a, slice(0, 5)), b[:5])) for a, b in samples]
    close(parts[0], parts[1])
    assert joined([samples[0][1], samples[0][1]]).shape == (2 * N, T)
