"""Forgetting with nothing chosen: methods are tried from cheap to dear until one has forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from unlearnx._checks import check_at_least_zero
from unlearnx._data import Data, size
from unlearnx._losses import counted
from unlearnx._pace import Pace
from unlearnx.curvature import Factors
from unlearnx.methods.base import Findings, Method, Work
from unlearnx.methods.chosen_parameters import last_layer
from unlearnx.methods.fine_tune import FineTune
from unlearnx.methods.first_order import FirstOrder
from unlearnx.methods.fisher_masking import FisherMasking
from unlearnx.methods.gradient_ascent import NegGrad
from unlearnx.methods.kfade import KFADE
from unlearnx.methods.outcome import Outcome
from unlearnx.methods.preference import NPO
from unlearnx.methods.request import Request
from unlearnx.methods.rounds import MOST_SAMPLES
from unlearnx.methods.salun import SalUn
from unlearnx.methods.scrub import SCRUB
from unlearnx.methods.second_order import SecondOrder
from unlearnx.methods.ssd import SSD
from unlearnx.methods.stored import FromFactors
from unlearnx.methods.strength import CHEAP, STAYS_TRIED, Tried
from unlearnx.methods.task_vector import TaskVector
from unlearnx.metrics.levels import NEAR, UnseenLevel
from unlearnx.metrics.texts import are_texts
from unlearnx.metrics.unseen import unseen_level

TEXT_RATE = 1e-4  # learning rate on texts, where rounds begin: language models bear less than others

Rank = tuple[bool, bool, bool, float, float]

MOST_PASSES = 2.0  # over what stays, where that is much, after which none is begun: retraining takes tens, and is exact


@dataclass
class Automatic(FromFactors):
    """Try methods in turn, each at the strength that it finds, until one has forgotten at little cost.

    Of a whole class, what only reads the data comes first: dampening, a step of the last layer, masking. Samples whose
    kind stays need training: on all that stays where that is much, and otherwise on it and on the forget set at once.
    Corrections begin with training on the corrected data. Of texts, what training on the forget set alone adds is taken
    off first (:class:`TaskVector`), and then they are trained against, with what stays beside them. Where no method
    forgets, the outcome is that of the one that came nearest. Where the estimate is too rough for a verdict, the first
    one that reaches it is the last one tried; where there is none, as of texts without held-out ones, the first one.
    Where much stays, no further one is begun once they have made as many gradients as two passes over it.

    With `factors` of the training data, what they are enough for comes first: dampening, influence updates, masking. It
    is all that is tried where the request has no retain set. Without held-out data either, the first one that is
    applied is taken, since nothing tells how much is enough, and costs are unknown, noted as 0.

    The outcome's ``info["tried"]`` has, for each method, its ``method``, ``forgotten``, ``applied``, ``reason``,
    ``seconds``, and ``cost``, the accuracy on what stays that it lost, or of texts the nats a token. A method that
    refuses the labels is passed over, with what it said as its ``reason``.

    Args:
        seconds: once so many have passed, no further method is begun; None for no limit.
        reference: a model that never saw the forget set, or held-out data, as for
            :func:`unlearnx.metrics.unseen_level`.
        factors: of the training data, fitted for the model as it is; no retain set is needed then.

    Raises:
        ValueError: `seconds` is negative, and as for the methods.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = Automatic()(nn.Linear(8, 3), Request.remove_class((x, y), 2))
        >>> outcome.info["tried"][0]["method"]
        'SSD'
    """

    seconds: float | None = None
    reference: nn.Module | Data | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_zero(seconds=self.seconds)

    @property
    def _finds_strength(self) -> bool:
        return True

    def _on_copy(self, model: nn.Module, request: Request, findings: Findings) -> Outcome:
        start, level, pace = time.perf_counter(), findings.level, findings.pace
        assert level is not None, "the strength is found, so the level is known"
        request = self._with_held_out(request)
        kept = None
        if request.something_stays:
            kept = Tried(request.target, STAYS_TRIED, seed=self.seed, **pace.settings)

        def known(model: nn.Module) -> float:
            return 0.0 if kept is None else kept.known(model)

        before, gradients = known(model), 0
        best: tuple[Rank, str, Outcome] | None = None
        refusal: ValueError | None = None
        tried: list[dict[str, Any]] = []
        for method in self._methods(model, request, level):
            if tried and (self._is_late(start) or _is_dear(gradients, request)):
                break
            try:
                outcome = method._on_copy(model, request, findings)
            except ValueError as error:  # it does not take these labels, as a method that relabels takes no values
                tried.append(_line(method, "unknown", False, str(error), 0.0, 0.0))
                refusal = error
                continue
            self._judge(model, outcome, request, level, pace)
            cost = max(0.0, before - known(outcome.model))
            gradients += outcome.gradient_evaluations
            found = outcome.forgotten, outcome.applied, outcome.reason, outcome.seconds
            tried.append(_line(method, *found, cost))
            rank = _rank(outcome, cost)
            if best is None or rank < best[0]:
                best = rank, type(method).__name__, outcome
            on_all = isinstance(method, FineTune) and _much_stays(request)
            if outcome.applied and (cost <= CHEAP or on_all) and _as_forgotten_as_can_be_told(outcome, level, on_all):
                break
        if best is None:
            assert refusal is not None, "there is a method to try"
            raise refusal
        _, name, outcome = best
        info = {**outcome.info, "method": name, "tried": tried}
        return replace(outcome, seconds=time.perf_counter() - start, gradient_evaluations=gradients, info=info)

    def _is_late(self, start: float) -> bool:
        return self.seconds is not None and time.perf_counter() - start > self.seconds

    def _level(self, model: nn.Module, request: Request, pace: Pace) -> UnseenLevel:
        if isinstance(self.reference, nn.Module):
            return unseen_level(model, request, self.reference, **pace.settings)
        return super()._level(model, self._with_held_out(request), pace)

    def _with_held_out(self, request: Request) -> Request:
        """The request, with the held-out data that the method was given."""
        if self.reference is None or isinstance(self.reference, nn.Module):
            return request
        return request.with_held_out(self.reference)

    def _methods(self, model: nn.Module, request: Request, level: UnseenLevel) -> Iterator[Method]:
        """The methods in the order in which they are tried."""
        common = {f.name: getattr(self, f.name) for f in fields(Method)}
        if self.factors is not None:
            stored: list[type[FromFactors]] = [SecondOrder, KFADE]
            if request.corrected is None:
                stored = [SSD, *stored, FisherMasking]
            for by_factors in stored:
                yield by_factors(factors=self.factors, **common)
            if not request.has_retain_set:
                return
        kinds: list[type[Method]] = [NegGrad, SCRUB, SalUn, FineTune]
        if are_texts(request.forget_set):
            kinds = [FineTune, NPO] if request.corrected is not None else [TaskVector, NPO, NegGrad]
            common["lr"] = TEXT_RATE
        elif request.corrected is not None:
            kinds = [FineTune, NegGrad, SCRUB]
        elif level.never_given:
            if self.factors is None:
                yield SSD(**common)
                kinds = [FisherMasking, *kinds]
            yield FirstOrder(**{**common, "params": last_layer(model) if self.params is None else self.params})
        elif _much_stays(request):
            kinds = [FineTune, NegGrad, SCRUB, SalUn]
        for kind in kinds:
            yield kind(**{**common, "loss_fn": counted(self.loss_fn, "token")} if kind._per == "token" else common)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        raise NotImplementedError("the methods that are tried do this")


def _much_stays(request: Request) -> bool:
    """Whether so much stays that fine-tuning alone trains on all of it: no other method would cost it less."""
    return request.has_retain_set and size(request.target) > MOST_SAMPLES


def _is_dear(gradients: int, request: Request) -> bool:
    return _much_stays(request) and gradients >= MOST_PASSES * size(request.target)


def _line(
    method: Method, forgotten: str, applied: bool, reason: str | None, seconds: float, cost: float
) -> dict[str, Any]:
    return {
        "method": type(method).__name__,
        "forgotten": forgotten,
        "applied": applied,
        "reason": reason,
        "seconds": seconds,
        "cost": cost,
    }


def _rank(outcome: Outcome, cost: float) -> Rank:
    """The least is best: applied, bearable, forgotten, near to what is expected of an unseen model, cheap."""
    forgot = outcome.forgotten == "yes"
    return not outcome.applied, cost > CHEAP and not forgot, not forgot, 0.0 if forgot else _distance(outcome), cost


def _as_forgotten_as_can_be_told(outcome: Outcome, level: UnseenLevel, on_all: bool) -> bool:
    """Whether it is forgotten, or at the estimate where that is too rough for any model to be known to have.

    After training `on_all` that stays, near the estimate is enough: the other methods would come nearer at a cost that
    samples which stay do not show.
    """
    if outcome.forgotten == "unknown":
        expected = level.loss if level.accuracy is None else level.accuracy
        return expected is None or _distance(outcome) <= (NEAR if on_all else expected.leeway)
    return outcome.forgotten == "yes"


def _distance(outcome: Outcome) -> float:
    """How far the accuracy on the forget set, or the loss of texts, is from that expected of an unseen model.

    It is 0 where that is unknown.
    """
    after, unseen = outcome.evidence["after"], outcome.evidence["unseen"]
    name = "loss" if unseen["accuracy"] is None else "accuracy"
    return 0.0 if after is None or unseen[name] is None else abs(after[name] - unseen[name]["estimate"])


def forget(
    model: nn.Module,
    request: Request | Data,
    *,
    retain: Data | None = None,
    reference: nn.Module | Data | None = None,
    factors: Factors | None = None,
    seconds: float | None = None,
    **settings: Any,
) -> Outcome:
    """Make a model forget, with the methods and strengths that do it best on this model.

    Args:
        model: the trained model; it is left as it was.
        request: what to forget; or the samples to forget, with those to `retain`.
        retain: samples that stay, where `request` is the samples to forget; not needed with `factors`.
        reference: a model that never saw the samples to forget, or held-out data; either tells what to expect.
        factors: Kronecker factors of the training data, fitted before for this model.
        seconds: once so many have passed, no further method is begun.
        settings: of every method: ``loss_fn``, ``params``, ``batch_size``, ``autocast``, ``seed``, ``progress``.

    Returns:
        The outcome of the method that forgot, or came nearest: ``outcome.model``, ``outcome.forgotten``; what was tried
        is in ``outcome.info["tried"]``; see :class:`unlearnx.methods.Automatic`.

    Raises:
        ValueError: `retain` is missing, or given with a request, and as for the methods.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = forget(nn.Linear(8, 3), Request.remove_class((x, y), 2))
        >>> outcome.forgotten in ("yes", "partly", "no", "unknown")
        True
    """
    if isinstance(request, Request):
        if retain is not None:
            raise ValueError("retain: is given with a Request, which knows what stays; expected None")
    elif retain is None and factors is None:
        raise ValueError("retain: is None, expected the samples that stay beside the samples to forget, or factors")
    else:
        request = Request.from_sets(forget=request, retain=retain)
    return Automatic(seconds, reference=reference, factors=factors, **settings)(model, request)
