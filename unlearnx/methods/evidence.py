"""What a verdict on forgetting rests on, and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearnx.methods.outcome import Verdict
from unlearnx.metrics.levels import Level, UnseenLevel

Measures = Mapping[str, Any]

# What is worse at forgetting too much, in words, with the sign of worse.
WORSE = {
    "accuracy": (-1, "gives its labels to {:.1%} of the forget set", "{:.1%}"),
    "confidence": (-1, "holds its labels for likely by {:.1%} on average", "{:.1%}"),
    "loss": (1, "has a mean loss of {:.3g} nats on the forget set", "{:.3g}"),
}


def evidence_of(
    before: Measures | None, after: Measures | None, unseen: UnseenLevel, chance: Level | None, sentence: str
) -> dict[str, Any]:
    """The evidence, as :func:`unlearnx.methods.judge` describes it.

    Args:
        before, after: measures on the forget set; None where outputs are of another kind.
        unseen: what is expected of a model that never saw it.
        chance: the advantage of the attack on such a model; None without held-out data.
        sentence: the verdict in words, to which one on the attack is added.
    """
    levels = {"accuracy": unseen.accuracy, "confidence": unseen.confidence, "loss": unseen.loss, "attack": chance}
    if before is not None and after is not None and chance is not None:
        sentence += (
            f" An attack on the loss tells {after['attack']:.1%} of it from held-out data, {before['attack']:.1%} "
            f"before, where {chance.estimate:.1%} (by chance up to {chance.high:.1%}) is expected."
        )
    return {
        "before": before,
        "after": after,
        "unseen": {name: None if level is None else vars(level) for name, level in levels.items()},
        "basis": unseen.basis,
        "sentence": sentence,
    }


def too_much(evidence: Mapping[str, Any]) -> str | None:
    """A warning where a model is worse on the forget set than is expected of one that never saw it, and was not before.

    Args:
        evidence: as :func:`unlearnx.methods.judge` returns it.
    """
    before, after, unseen = (evidence.get(name) for name in ("before", "after", "unseen"))
    if before is None or after is None or unseen is None:
        return None
    found = []
    for name, (sign, words, number) in WORSE.items():
        level = unseen[name]
        if level is None or after[name] is None or before[name] is None:
            continue
        bound = level["high" if sign > 0 else "low"]
        if sign * after[name] > sign * bound >= sign * before[name]:
            low, high, old = (number.format(value) for value in (level["low"], level["high"], before[name]))
            found.append(f"{words.format(after[name])}, {old} before, where {low} to {high} are expected")
    if not found:
        return None
    return (
        f"The model {'; it '.join(found)} of one that never saw it. It forgot too much: what it does there reveals "
        "which samples were forgotten."
    )


def said(verdict: Verdict, what: str, it: str) -> str:
    """A verdict on `what` was to be forgotten, and the pronoun for it, as the beginning of a sentence."""
    return {
        "yes": f"The model does on {what} as one would that never saw {it}",
        "partly": "The model has forgotten in part",
        "no": f"The model still knows {what}",
        "unknown": "The estimate is too rough to tell whether the model has forgotten",
    }[verdict]


def not_known(unseen: UnseenLevel) -> str:
    """The sentence where nothing is expected of a model that never saw the forget set."""
    return f"Whether the model has forgotten is not known. {unseen.basis}"
