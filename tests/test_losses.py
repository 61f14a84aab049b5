"""Losses of single samples: in float64 against the definition, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request, losses
from unlearnx._losses import SampleLoss
from unlearnx.curvature import fisher_diagonal, grad_difference
from unlearnx.methods import FineTune

N, C, T = 12, 5, 4
WEIGHT = torch.tensor([0.1, 1.0, 5.0, 2.0, 0.0], dtype=torch.float64)


class Output(OrderedDict):
    """As the outputs of HuggingFace: a mapping whose entries are attributes too."""

    @property
    def logits(self):
        return self["logits"]


def scores(*shape: int) -> torch.Tensor:
    return torch.randn(N, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


def classes(*shape: int, ignored: int | None = None) -> torch.Tensor:
    y = torch.randint(0, C, (N, *shape), generator=torch.Generator().manual_seed(2))
    if ignored is not None:
        y[0], y[3, ...] = ignored, ignored
        if shape:
            y[5:, 1:] = ignored
    return y


def negative_log(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The definition, without torch's losses: -log softmax at the label."""
    return -(output - output.logsumexp(1, keepdim=True)).gather(1, y[:, None]).squeeze(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda **settings: nn.CrossEntropyLoss(**settings),
        lambda **settings: partial(F.cross_entropy, **settings),
        lambda **settings: partial(partial(F.cross_entropy, reduction="none"), **settings),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_torch(make, reduction, ignored, weight, smoothing):
    output, y = scores(C), classes(ignored=ignored)
    got = SampleLoss(make(reduction=reduction, ignore_index=ignored, weight=weight, label_smoothing=smoothing))
    expected = []
    for i in range(N):
        log_p = output[i] - output[i].logsumexp(0)
        w = torch.ones(C, dtype=torch.float64) if weight is None else weight
        one = -(1 - smoothing) * w[y[i]] * log_p[y[i]] - smoothing / C * (w * log_p).sum() if y[i] != ignored else None
        expected.append(output.new_zeros(()) if one is None else one)
    torch.testing.assert_close(got.each(output, y), torch.stack(expected))
    assert got.exact
    assert got.ignore_index == ignored


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_positions_without_a_label(reduction):
    output, y = scores(C, T), classes(T, ignored=-100)
    got = SampleLoss(nn.CrossEntropyLoss(reduction=reduction)).each(output, y)
    for i in range(N):
        own = [negative_log(output[i : i + 1, :, t], y[i : i + 1, t]) for t in range(T) if y[i, t] != -100]
        expected = torch.cat(own).sum() / (len(own) if reduction == "mean" else 1) if own else output.new_zeros(())
        torch.testing.assert_close(got[i], expected)


@pytest.mark.parametrize(
    ("loss", "alone"),
    [
        (F.mse_loss, lambda o, y: (o - y).square().mean()),
        (nn.MSELoss(reduction="sum"), lambda o, y: (o - y).square().sum()),
        (nn.L1Loss(), lambda o, y: (o - y).abs().mean()),
        (nn.HuberLoss(delta=0.3), lambda o, y: F.huber_loss(o, y, delta=0.3)),
        (nn.SmoothL1Loss(beta=0.3), lambda o, y: F.smooth_l1_loss(o, y, beta=0.3)),
        (
            nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
            lambda o, y: F.binary_cross_entropy_with_logits(o, y, pos_weight=WEIGHT),
        ),
    ],
)
def test_elementwise_losses_of_torch(loss, alone):
    output, y = scores(C), (torch.rand(N, C, dtype=torch.float64) > 0.5).double()
    got = SampleLoss(loss)
    assert got.exact
    expected = torch.stack([alone(output[i : i + 1], y[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(got.each(output, y), expected)


def has_branches(output, y):
    """A loss that vmap cannot follow."""
    return F.cross_entropy(output, y) if y.max() >= 0 else output.sum()


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: F.cross_entropy(o, y),
        lambda o, y: F.cross_entropy(o, y, reduction="sum"),
        lambda o, y: F.cross_entropy(o, y, reduction="none"),
        lambda o, y: F.cross_entropy(o, y) + 3.0,
        lambda o, y: o[y >= 0].logsumexp(1).mean(),
        lambda o, y: F.kl_div(o.log_softmax(1), F.one_hot(y, C).double(), reduction="batchmean"),
        has_branches,
    ],
)
def test_any_loss_is_split_over_samples(loss):
    output, y = scores(C), classes()
    got = SampleLoss(loss).each(output, y)
    expected = torch.stack([loss(output[i : i + 1], y[i : i + 1]).sum() for i in range(N)])
    torch.testing.assert_close(got, expected)
    ours, theirs = (torch.autograd.grad(v.sum(), output, retain_graph=True)[0] for v in (got, expected))
    torch.testing.assert_close(ours, theirs)


def test_outputs_and_labels_of_any_form():
    output = Output(logits=scores(C), other=scores(2), note="text")
    y = {"class": classes(), "value": scores(1).detach()}
    loss = SampleLoss(lambda o, y: F.cross_entropy(o.logits, y["class"]) + F.mse_loss(o["other"][:, :1], y["value"]))
    expected = negative_log(output.logits, y["class"]) + (output["other"][:, :1] - y["value"]).square().mean(1)
    torch.testing.assert_close(loss.each(output, y), expected)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, y: F.cross_entropy(o, y, WEIGHT + 1), "expected their mean or sum; return one loss per sample"),
        (lambda o, y: F.cross_entropy(o, y, reduction="sum") / 7 + o.std(), "losses one by one sum to"),
        (lambda o, y: F.cross_entropy(o, y).square(), "pass torch's own loss, such as nn.CrossEntropyLoss"),
        (
            lambda o, y: F.cross_entropy(o, y, reduction="none") / len(y),
            "expected a loss that does not depend on other",
        ),
        (
            lambda o, y: F.cross_entropy(o, y, reduction="none") - o.mean(),
            "expected a loss that does not depend on other",
        ),
        (lambda o, y: o.flatten(), r"returned shape \[60\] for 12 samples"),
        (lambda o, y: 1.0, "returned float"),
        (lambda o, y: F.cross_entropy(o.mul_(2), y), "loss_fn: writes to the outputs that it is given"),
    ],
)
def test_losses_that_are_no_sums_over_samples(loss, message):
    with pytest.raises(ValueError, match=message):
        SampleLoss(loss).total(scores(C) * 1, classes())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, y: (o.argmax(1) != y).float().mean(), "loss_fn: returned a value without a gradient"),
        (lambda o, y: F.cross_entropy(o.detach(), y), "loss_fn: returned a value without a gradient"),
        (lambda o, y: F.cross_entropy(o.clamp_(-9, 9), y), "loss_fn: writes to the outputs that it is given"),
        (lambda o, y: F.cross_entropy(F.dropout(o), y), "loss_fn: gave another value for the same outputs and labels"),
    ],
)
def test_losses_that_give_no_gradient_or_a_random_one(loss, message):
    model, data = torch.nn.Linear(3, C), (torch.randn(9, 3), torch.arange(9) % C)
    calls = [
        lambda: fisher_diagonal(model, loss, data),
        lambda: grad_difference(model, loss, data),
        lambda: FineTune(loss_fn=loss)(model, Request.remove(data, [1])),
    ]
    before = torch.get_rng_state()
    for call in calls:
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_batch_is_compared():
    """Class weights cancel where a batch has one class: the next batch tells."""
    loss = SampleLoss(lambda o, y: F.cross_entropy(o, y, WEIGHT + 1))
    output = scores(C)
    loss.total(output, torch.full((N,), 2))
    with pytest.raises(ValueError, match=r"the batch has labels \d"):
        loss.total(output, classes())


def test_a_sample_without_a_finite_loss_is_named():
    loss = SampleLoss(lambda o, y: F.cross_entropy(o, y))
    with pytest.raises(ValueError, match=r"but nan for sample 0 of them alone \(label -100\)"):
        loss.total(scores(C), classes(ignored=-100))
    output = scores(C).detach()
    output[3] = torch.inf
    assert not loss.each(output, classes())[3].isfinite()
    with pytest.raises(ValueError, match="expected their mean or sum"):  # the check goes on
        SampleLoss(lambda o, y: F.cross_entropy(o, y) ** 2).total(scores(C), classes())


def test_labels_that_would_be_broadcast_are_refused():
    with pytest.raises(ValueError, match="loss_fn: returned"), pytest.warns(UserWarning, match="target size"):
        SampleLoss(F.mse_loss).total(scores(1), torch.randn(N, dtype=torch.float64))


def test_labels_are_copies():
    y = classes()

    def loss(output, y):
        y.zero_()
        return F.cross_entropy(output, y, reduction="none")

    kept = y.clone()
    SampleLoss(loss).total(scores(C), y)
    assert torch.equal(y, kept)


@pytest.mark.parametrize(
    "wrap", [lambda t: t, lambda t: Output(logits=t), lambda t: {"logits": t}, lambda t: (t, None)]
)
def test_our_losses(wrap):
    y = classes(T, ignored=-100)
    tokens, last = scores(C, T), scores(C, T).movedim(1, -1)
    expected = SampleLoss(nn.CrossEntropyLoss()).each(tokens, y)
    torch.testing.assert_close(losses.cross_entropy(wrap(last), y), expected)
    torch.testing.assert_close(losses.cross_entropy(wrap(tokens), y), expected)
    answers = (scores(3) > 0).double().where(torch.rand(N, 3) > 0.3, -100)
    answers[0] = -100
    got = losses.binary_cross_entropy(wrap(scores(3)), answers)
    each = F.binary_cross_entropy_with_logits(scores(3), answers.clamp(min=0), reduction="none")
    kept = answers != -100
    torch.testing.assert_close(got, (each * kept).sum(1) / kept.sum(1).clamp(min=1))
    torch.testing.assert_close(losses.mse(wrap(scores(1)), torch.ones(N)), (scores() - 1).square())


@pytest.mark.parametrize("per", ["sample", "token"])
def test_causal_lm_shifts_by_one(per):
    logits, y = scores(T, C), classes(T, ignored=-100)
    expected = []
    for i in range(N):
        own = [negative_log(logits[i, t][None], y[i, t + 1][None]) for t in range(T - 1) if y[i, t + 1] != -100]
        total = torch.cat(own).sum() if own else logits.new_zeros(())
        expected.append(total / max(1, len(own)) if per == "sample" else total)
    for loss in (losses.causal_lm(per=per), partial(losses.causal_lm, per=per)):
        torch.testing.assert_close(loss(Output(logits=logits), y), torch.stack(expected))
        assert SampleLoss(loss).exact
    with pytest.raises(ValueError, match="per is 'word'"):
        losses.causal_lm(per="word")


def test_the_default_loss_refuses_logits_of_positions():
    with pytest.raises(ValueError, match="causal_lm, which shifts the labels by one"):
        SampleLoss(F.cross_entropy).total(Output(logits=scores(T, C)), classes(T))
