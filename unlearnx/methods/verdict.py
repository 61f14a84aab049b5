"""Whether a model has forgotten: what it does on the forget set, beside what one that never saw it would do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unlearnx._arguments import checked
from unlearnx._checks import known_as
from unlearnx._data import Data
from unlearnx.methods.evidence import evidence_of, not_known, said
from unlearnx.methods.outcome import Verdict
from unlearnx.methods.request import Request
from unlearnx.methods.text_verdict import judge_texts
from unlearnx.metrics.advantage import advantage_by_chance, membership_advantage
from unlearnx.metrics.levels import NEAR, Level, UnseenLevel
from unlearnx.metrics.readings import HIT, LOSS, PROBABILITY, Reader, Reading
from unlearnx.metrics.texts import are_texts
from unlearnx.metrics.unseen import unseen_level

READ = 2000  # most samples of the forget set, and of held-out data, that are looked at
MEASURES = {"accuracy": HIT, "confidence": PROBABILITY, "loss": LOSS}


@checked
def judge(
    before: nn.Module,
    after: nn.Module,
    request: Request,
    reference: nn.Module | Data | UnseenLevel | None = None,
    *,
    batch_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> tuple[Verdict, dict[str, Any]]:
    """Compare a model with what one that never saw the forget set would do on it.

    It has forgotten where its accuracy on the forget set is within 5 points of the estimate, and within 10 of both ends
    of its interval: it does not know the samples any more, nor does it avoid their labels, which would give the removal
    away. It has forgotten in part where it came more than half of the way, or went too far. Where the interval is so
    wide that it holds models that forgot and others, nothing is claimed.

    Of texts their mean loss is compared instead, by the same rule where the estimate is as sharp, in nats for points. A
    wider interval tells where the model before was outside of it, and the new one is within it and has come more than
    half of the way to the estimate. Where held-out texts tell it, the estimate is their loss after the change: to a
    model that never saw a text, it is as likely as others of its kind.

    Args:
        before: the model before the change.
        after: the model to judge.
        request: what was to be forgotten.
        reference: as for :func:`unlearnx.metrics.unseen_level`, or what that has returned.
        batch_size: samples in one forward pass.
        autocast: dtype for the layers that mixed precision speeds up; None keeps the model's own dtype.

    Returns:
        ``"yes"``, ``"partly"``, ``"no"`` or ``"unknown"``, and the evidence: ``accuracy``, ``confidence`` (the mean
        probability of the labels, in [0, 1]) and mean ``loss`` in nats on the forget set, of texts the latter alone,
        ``before``, ``after`` and of an ``unseen`` model, with 95 % intervals; ``attack``, the advantage in [0, 1] of
        one that tells the forget set from held-out data by a threshold on the loss (Yeom et al., CSF 2018), None
        without such data of its classes; ``basis``, what these rest on; ``sentence``, the verdict in words.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> request = Request.remove_class((x, y), 2)
        >>> model, other = nn.Linear(8, 3), nn.Linear(8, 3)
        >>> other.bias.data[2] = -100  # the class is never predicted
        >>> judge(model, other, request)[0]
        'yes'
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "autocast": autocast}
    with known_as(model="before"):
        unseen = (
            reference if isinstance(reference, UnseenLevel) else unseen_level(before, request, reference, **settings)
        )
    held_out = request.held_out if reference is None or isinstance(reference, nn.Module | UnseenLevel) else reference
    if are_texts(request.forget_set):
        return judge_texts(before, after, request.forget_set, held_out, unseen, READ, seed=0, **settings)
    reader = Reader(batch_size, autocast, 0)

    def read(name: str, model: nn.Module) -> tuple[Reading | None, Reading | None]:
        with known_as(model=name):
            forget = reader.read(model, request.forget_set, READ)
            return forget, None if held_out is None else reader.read(model, held_out, READ)

    first, last = read("before", before), read("after", after)
    old, new, chance = _measures(*first), _measures(*last), _chance(*last)
    verdict: Verdict = "unknown"
    sentence = not_known(unseen)
    if old is not None and new is not None and unseen.accuracy is not None:
        pair = old["accuracy"], new["accuracy"]
        verdict = _verdict(*pair, unseen.accuracy)
        sentence = _sentence(verdict, *pair, unseen.accuracy)
    return verdict, evidence_of(old, new, unseen, chance, sentence)


def _measures(forget: Reading | None, held_out: Reading | None) -> dict[str, Any] | None:
    if forget is None:
        return None
    means = {name: float(forget.of_labels[row].mean()) for name, row in MEASURES.items()}
    return {**means, "attack": None if held_out is None else membership_advantage(forget, held_out)}


def _chance(forget: Reading | None, held_out: Reading | None) -> Level | None:
    return None if forget is None or held_out is None else advantage_by_chance(forget, held_out)


def _verdict(before: float, after: float, level: Level) -> Verdict:
    if level.agrees(after):
        return "yes"
    left, whole = level.outside(after), level.outside(before)
    if left <= NEAR:
        return "unknown"
    return "partly" if left < whole / 2 or after < level.low < before else "no"


def _sentence(verdict: Verdict, before: float, after: float, level: Level) -> str:
    beginning = said(verdict, "the forget set", "it")
    if verdict in ("partly", "no") and after < level.low:
        beginning = "The model avoids the labels of the forget set, which gives the removal away"
    return (
        f"{beginning}: it gives its labels to {after:.1%} of it, {before:.1%} before, where {level.estimate:.1%} "
        f"({level.low:.1%} to {level.high:.1%}) are expected of one that never saw it."
    )
