"""Language models that forget texts: the level of texts never seen, the strength that reaches it, the verdict."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from unlearnx import Request, forget
from unlearnx.losses import causal_lm
from unlearnx.methods import (
    KFADE,
    NPO,
    SSD,
    FirstOrder,
    FisherMasking,
    GradientAscent,
    NegGrad,
    SimNPO,
    TaskVector,
    judge,
)
from unlearnx.methods.strength import TEXT_HALVINGS, Gauge, Tried, likelier
from unlearnx.methods.text_verdict import verdict_of_losses
from unlearnx.metrics import Level, linear_probe, min_k, unseen_level
from unlearnx.models import Training

WORDS, LENGTH = 12, 8


class Reader(nn.Module):
    """A causal language model that reads two tokens back, with scores as HuggingFace's models return them."""

    def __init__(self, width=24):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.body = nn.Sequential(nn.Linear(2 * width, 64), nn.Tanh(), nn.Linear(64, WORDS))

    def forward(self, input_ids, attention_mask=None):
        now = self.embedding(input_ids)
        before = torch.cat([torch.zeros_like(now[:, :1]), now[:, :-1]], 1)
        return {"logits": self.body(torch.cat([now, before], -1))}


def texts(rows):
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows)}, rows


def written(n, seed):
    """Texts of a small grammar: each token is one of three that may follow the last."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(WORDS, (n,), generator=generator)]
    for _ in range(LENGTH - 1):
        tokens.append((tokens[-1] * 5 + torch.randint(3, (n,), generator=generator)) % WORDS)
    return torch.stack(tokens, 1)


def secrets(n, seed):
    return torch.randint(WORDS, (n, LENGTH), generator=torch.Generator().manual_seed(seed))


def trained(rows):
    torch.manual_seed(0)
    model = Reader()
    Training(60, lr=1e-2, batch_size=32, loss_fn=causal_lm()).run(model, texts(rows))
    return model.eval()


FORGET, HELD_OUT = 4, 40


@pytest.fixture(scope="module")
def case():
    """A model that knows four secrets by heart, one that never saw them, and forty that neither has seen."""
    rows = torch.cat([secrets(FORGET, 1), written(150, 2)])
    repeated = torch.cat([rows[:FORGET].repeat(8, 1), rows])
    request = Request.remove(texts(rows), range(FORGET)).with_held_out(texts(secrets(HELD_OUT, 3)))
    return trained(repeated), trained(rows[FORGET:]), request


def losses(model, data):
    return -min_k(model, data, share=1.0)


def test_the_level_is_that_of_held_out_texts(case):
    model, _, request = case
    model = model.double()
    held = losses(model, request.held_out)
    level = unseen_level(model, request)
    mean, reach = held.mean(), 1.96 * held.std() * math.sqrt(1 / FORGET + 1 / HELD_OUT)
    expected = [mean, mean - reach, mean + reach]
    found = [level.loss.estimate, level.loss.low, level.loss.high]
    assert found == pytest.approx([float(v) for v in expected], abs=1e-12)
    assert level.known
    assert not level.never_given
    assert (level.accuracy, level.confidence) == (None, None)
    given = unseen_level(model, replace(request, held_out=None), texts(secrets(HELD_OUT, 3)))
    assert given == level
    model.float()


def test_a_model_that_never_saw_them_is_the_level(case):
    model, other, request = case
    level = unseen_level(model, request, other)
    assert level.loss.estimate == pytest.approx(float(losses(other, request.forget_set).mean()))
    assert not level.of_held_out


def test_without_held_out_texts_nothing_is_claimed(case):
    model, _, request = case
    alone = replace(request, held_out=None)
    level = unseen_level(model, alone)
    assert not level.known
    assert "told by held-out texts, and none were given" in level.basis
    few = unseen_level(model, alone, texts(secrets(9, 3)))
    assert not few.known
    assert "there are 9, which are too few" in few.basis
    outcome = TaskVector(loss_fn=causal_lm())(model, alone)
    assert outcome.forgotten == "unknown"
    assert outcome.info["factor"] == 1.0
    assert "is not known" in outcome.evidence["sentence"]


def test_a_probe_refuses_texts(case):
    model, _, request = case
    with pytest.raises(ValueError, match="train: holds texts, whose tokens are their own labels"):
        linear_probe(model, request.forget_set, request.held_out)


REACH_IT = [TaskVector(), NPO(), SimNPO(), NegGrad(), GradientAscent(), KFADE(), FirstOrder()]


def named(method):
    return type(method).__name__


@pytest.mark.parametrize("method", REACH_IT, ids=named)
def test_texts_are_forgotten_with_nothing_tuned(case, method):
    model, _, request = case
    outcome = replace(method, loss_fn=causal_lm(), batch_size=32)(model, request)
    assert outcome.forgotten == "yes"
    before, after = (float(losses(m, request.forget_set).mean()) for m in (model, outcome.model))
    assert outcome.evidence["before"]["loss"] == pytest.approx(before)
    assert outcome.evidence["after"]["loss"] == pytest.approx(after)
    level = outcome.evidence["unseen"]["loss"]
    assert before < 0.5 < level["low"] < after < level["high"]
    assert after < level["estimate"] + 0.5  # no more than was to be forgotten
    assert outcome.loss_after <= outcome.loss_before + 0.5
    assert f"{after:.3g} nats a token" in outcome.evidence["sentence"]
    attack = [outcome.evidence[when]["attack"] for when in ("before", "after")]
    assert attack[0] == 1.0
    assert f"tells {attack[1]:.1%} of it from held-out data, 100.0% before" in outcome.evidence["sentence"]
    assert attack[1] <= outcome.evidence["unseen"]["attack"]["high"]


@pytest.mark.parametrize("method", [SSD(), FisherMasking()], ids=named)
def test_a_method_that_does_not_get_there_says_so(case, method):
    model, _, request = case
    outcome = replace(method, loss_fn=causal_lm(), batch_size=32)(model, request)
    assert outcome.applied
    assert not outcome.info["forgets"]
    assert outcome.forgotten == "no"
    assert "The model still knows the texts" in outcome.evidence["sentence"]


def test_too_much_is_not_forgotten(case):
    model, _, request = case
    method = GradientAscent(epochs=60, lr=1e-2, loss_fn=causal_lm(), batch_size=32, max_increase=math.inf)
    outcome = method(model, request)
    assert outcome.forgotten == "partly"
    assert "avoids the texts to forget, which gives the removal away" in outcome.evidence["sentence"]


def test_forget_tries_what_costs_less_where_the_first_costs_much(case):
    model, _, request = case
    outcome = forget(model, request, loss_fn=causal_lm(), batch_size=32)
    assert outcome.forgotten == "yes"
    tried = outcome.info["tried"]
    assert [line["method"] for line in tried] == ["TaskVector", "NPO"]
    assert tried[0]["cost"] > 0.01 >= tried[1]["cost"]
    assert outcome.info["method"] == "NPO"
    given = forget(
        model, replace(request, held_out=None), reference=request.held_out, loss_fn=causal_lm(), batch_size=32
    )
    assert given.info["tried"][1]["cost"] == tried[1]["cost"]


class Fixed(nn.Module):
    """Gives the token after each token a probability that depends on the text's first token."""

    def __init__(self, p):
        super().__init__()
        self.p = nn.Parameter(torch.as_tensor(p, dtype=torch.float64))

    def forward(self, input_ids):
        n, length = input_ids.shape
        p = self.p[input_ids[:, :1]].expand(n, length)
        rest = ((1 - p) / (WORDS - 1)).log()[..., None].expand(n, length, WORDS)
        following = input_ids.roll(-1, 1)[..., None]
        return {"logits": rest.scatter(2, following, p.log()[..., None])}


def fixed_texts(first, n):
    rows = torch.cat([torch.full((n, 1), first), written(n, 5)], 1)
    return {"input_ids": rows}, rows


def test_the_level_is_the_loss_of_held_out_texts_as_it_is_now():
    """Of a secret that is known by heart, others like it are unlikelier than they are to a model that never saw it."""
    forgotten, held, stays = fixed_texts(0, 3), fixed_texts(1, 20), fixed_texts(2, 30)
    model = Fixed([0.9, 0.01, 0.5] + [0.5] * 9)
    loss = {"forget": -math.log(0.9), "held": -math.log(0.01), "stays": -math.log(0.5)}
    settings = {"batch_size": 8, "autocast": None}
    tried = {name: Tried(data, 100, seed=0, **settings) for name, data in (("forget", forgotten), ("held", held))}
    gauge = Gauge(
        model,
        causal_lm(),
        likelier(tried["forget"], tried["held"]),
        Tried(stays, 100, seed=0, **settings),
        Level(loss["held"], 4.0, 5.0).from_estimate,
        0.5,
        halvings=TEXT_HALVINGS,
        **settings,
    )
    assert gauge.at_start == pytest.approx(loss["held"] - loss["forget"], abs=1e-12)
    assert not gauge.forgotten()
    with torch.no_grad():
        model.p[:3] = torch.tensor([0.2, 0.25, 0.4], dtype=torch.float64)
    now = {"forget": -math.log(0.2), "held": -math.log(0.25), "stays": -math.log(0.4)}
    assert gauge.known() == pytest.approx(now["held"] - now["forget"], abs=1e-12)
    assert gauge.forgotten()
    assert gauge.cost() == pytest.approx(now["stays"] - loss["stays"], abs=1e-12)
    assert gauge.loss() == pytest.approx(now["stays"], abs=1e-12)
    with torch.no_grad():
        model.p[1] = 0.001  # a method that makes all of the kind less likely still tells the secret from others
    assert gauge.known() == pytest.approx(-math.log(0.001) - now["forget"], abs=1e-12)
    assert not gauge.forgotten()
    request = Request.from_sets(forget=forgotten, retain=stays).with_held_out(held)
    before = Fixed([0.9, 0.01, 0.5] + [0.5] * 9)
    model.p.data[1] = 0.25
    verdict, evidence = judge(before, model, request)
    assert evidence["unseen"]["loss"]["estimate"] == pytest.approx(now["held"], abs=1e-12)
    assert verdict == "partly"  # held-out texts do not differ at all: there the loss would be known to 0.05 nats
    model.p.data[0] = 0.245
    assert judge(before, model, request)[0] == "yes"


@pytest.mark.parametrize(
    ("before", "after", "level", "expected"),
    [
        (0.1, 3.0, Level(3.0, 2.0, 4.0), "yes"),
        (0.1, 2.1, Level(3.0, 2.0, 4.0), "yes"),
        (1.9, 2.1, Level(3.0, 2.0, 4.0), "unknown"),  # it was hardly outside
        (2.1, 3.0, Level(3.0, 2.0, 4.0), "unknown"),  # it may never have known them
        (2.98, 3.0, Level(3.0, 2.95, 3.05), "yes"),
        (0.1, 1.9, Level(3.0, 2.0, 4.0), "partly"),
        (0.1, 1.0, Level(3.0, 2.0, 4.0), "no"),
        (0.1, 4.5, Level(3.0, 2.0, 4.0), "partly"),
        (0.1, 20.0, Level(3.0, 2.0, 4.0), "partly"),  # avoided
        (5.0, 20.0, Level(3.0, 2.0, 4.0), "no"),
    ],
)
def test_rule(before, after, level, expected):
    assert verdict_of_losses(before, after, level) == expected
