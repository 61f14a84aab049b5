"""Whether a language model has forgotten texts: their loss, beside that of texts that it never saw."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unlearnx._checks import known_as
from unlearnx._data import Data
from unlearnx.methods.evidence import evidence_of, not_known, said
from unlearnx.methods.outcome import Verdict
from unlearnx.metrics.advantage import threshold_advantage, threshold_by_chance
from unlearnx.metrics.levels import Level, UnseenLevel
from unlearnx.metrics.texts import different, expected_loss, text_losses

Losses = tuple[Tensor, Tensor | None]  # of the texts to forget, and of held-out ones


def judge_texts(
    before: nn.Module,
    after: nn.Module,
    forget: Data,
    held_out: Data | None,
    unseen: UnseenLevel,
    most: int,
    **settings: Any,
) -> tuple[Verdict, dict[str, Any]]:
    """The verdict and the evidence, as of :func:`unlearnx.methods.judge`.

    Args:
        held_out: texts that neither model saw; None where there are none.
        unseen: the level of texts that `before` never saw.
        most: texts of a set that are read.
        settings: of :func:`unlearnx.metrics.texts.text_losses`.
    """

    def read(name: str, model: nn.Module) -> Losses:
        with known_as(model=name):
            losses = text_losses(model, forget, most, **settings)
            return losses, None if held_out is None else text_losses(model, held_out, most, **settings)

    first, last = read("before", before), read("after", after)
    if unseen.of_held_out and last[1] is not None:
        unseen = expected_loss(last[1], different(forget))  # to a model that never saw a text it is like others
    old, new = _measures(*first), _measures(*last)
    chance = None if last[1] is None else threshold_by_chance(len(last[0]), len(last[1]))
    if unseen.loss is None:
        return "unknown", evidence_of(old, new, unseen, chance, not_known(unseen))
    pair = old["loss"], new["loss"]
    verdict = verdict_of_losses(*pair, unseen.loss)
    return verdict, evidence_of(old, new, unseen, chance, _sentence(verdict, *pair, unseen.loss))


def _measures(forget: Tensor, held_out: Tensor | None) -> dict[str, Any]:
    attack = None if held_out is None else threshold_advantage(forget, held_out)
    return {"accuracy": None, "confidence": None, "loss": float(forget.mean()), "attack": attack}


def verdict_of_losses(before: float, after: float, level: Level) -> Verdict:
    """The verdict from mean losses before and after.

    It is ``"yes"`` within the interval, where the loss was outside of it and has come more than half of the way to the
    estimate, or where the interval is so narrow that this does not matter.
    """
    left, whole = abs(after - level.estimate), abs(before - level.estimate)
    if level.agrees(after):
        return "yes"
    if level.outside(after) == 0:
        return "yes" if level.outside(before) > 0 and left < whole / 2 else "unknown"
    return "partly" if left < whole / 2 or before < level.high < after else "no"


def _sentence(verdict: Verdict, before: float, after: float, level: Level) -> str:
    beginning = said(verdict, "the texts to forget", "them")
    if verdict in ("partly", "no") and after > level.high:
        beginning = "The model avoids the texts to forget, which gives the removal away"
    return (
        f"{beginning}: their mean loss is {after:.3g} nats a token, {before:.3g} before, where {level.estimate:.3g} "
        f"({level.low:.3g} to {level.high:.3g}) are expected of one that never saw them."
    )
