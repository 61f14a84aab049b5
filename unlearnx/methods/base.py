"""The base class of the methods: it works on a copy of the model, and does not apply a result that does harm."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unlearnx._arguments import check_fields, checked
from unlearnx._batches import Nest, call, count, moved, rows
from unlearnx._calls import check_call
from unlearnx._checks import (
    Params,
    check_at_least_one,
    check_at_least_zero,
    model_device,
    select_params,
)
from unlearnx._copies import independent
from unlearnx._data import Data
from unlearnx._labels import guessing_loss
from unlearnx._losses import Loss, SampleLoss, counted
from unlearnx._modes import evaluating
from unlearnx._pace import Pace, find_pace
from unlearnx._progress import showing_passes
from unlearnx._sources import Samples
from unlearnx._vectors import Vector
from unlearnx._wrappers import rewrapped
from unlearnx.curvature.kfac.factors import Factors
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.methods.chosen_parameters import ChosenParameters, last_layer
from unlearnx.methods.frozen_features import request_on_features
from unlearnx.methods.loss_increase import LossIncrease
from unlearnx.methods.outcome import Outcome
from unlearnx.methods.request import Request
from unlearnx.methods.strength import (
    AUTO,
    FORGET_TRIED,
    HALVINGS,
    STAYS_TRIED,
    TEXT_HALVINGS,
    Gauge,
    Known,
    Standing,
    Tried,
    cheaper_strength,
    greatest_strength,
    least_strength,
    likelier,
)
from unlearnx.methods.verdict import judge
from unlearnx.metrics import mean_loss
from unlearnx.metrics.levels import UnseenLevel
from unlearnx.metrics.outputs import sample_losses
from unlearnx.metrics.unseen import unseen_level

MAX_REMOVAL_LOSS_INCREASE = 0.5  # of the mean loss on the retain set, in the loss's unit, where the user gives none


# Returns the direction of a step and writes the step's numbers to its record; None where there is nothing to correct.
FirstDirection = Callable[[dict[str, Any]], Vector | None]


T = TypeVar("T")


class NotApplied(Exception):
    """Raised by a method whose result would do harm; the message becomes the outcome's ``reason``."""


@dataclass(frozen=True)
class Findings:
    """What is known of a model and a request before a method is applied to a copy.

    Attributes:
        level: what a model would do that never saw the forget set; None where the strength is given.
        pace: how the model goes through the data.
        first_direction: gives the first step's, where it was solved for together with those of other requests.
    """

    level: UnseenLevel | None
    pace: Pace
    first_direction: FirstDirection | None = None


@dataclass(kw_only=True)
class Method:
    """An unlearning method: ``method(model, request) -> Outcome``.

    Args:
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        params: parameters that may change: names, ``"last:K"``, or None for all that require gradients. The part
            of the model before them runs once, and its outputs are kept.
        batch_size: samples per pass; most of them in passes whose results do not depend on it.
        autocast: dtype of autocast; None for the model's own dtype. ``"auto"`` takes bfloat16 for work of more than a
            few seconds where the device has instructions for it (see :func:`unlearnx.models.fast_dtype`) and a trial
            shows the model faster and its loss the same. It leaves float64 alone, and what is solved for or compares
            losses that differ by little: of :class:`FirstOrder`, :class:`SecondOrder` and :class:`NewtonRepair`, it
            concerns the frozen layers only. The outcome's ``info["pace"]`` says what was chosen, and under ``"head"``
            for the layers that are changed where they differ.
        seed: seed of all random choices.
        progress: show progress bars (needs ``unlearnx[experiments]``).
        max_increase: largest increase of the mean loss on the corrected data, or on the retain set of a removal, in
            the unit of the loss (nats for cross-entropy; of texts nats a token, also where the loss is a sum over
            tokens). A result that increases it more is not applied. None is 0.5 for removals, which may cost a little,
            and 0 for corrections.

    Example:
        >>> @dataclass
        ... class Shrink(Method):
        ...     def _apply(self, work, info):
        ...         for name, p in work.model.named_parameters():
        ...             p.data.mul_(0.9 if name in work.names else 1.0)
        >>> Shrink()(nn.Linear(8, 3), Request.remove((torch.randn(60, 8), torch.arange(60) % 3), [0])).applied
        True
    """

    _needs_eval: ClassVar[bool] = True
    _needs_whole: ClassVar[bool] = False  # whether it looks inside of the model, which is then not split
    _exact: ClassVar[bool] = False  # whether losses are compared so closely that "auto" leaves them in the own dtype
    _per: ClassVar[str] = "sample"  # whether its paper has the mean of a text's losses, or their sum ("token")
    _strength: ClassVar[str | None] = None  # the field that is "auto" where the method finds its strength by itself

    loss_fn: Loss = F.cross_entropy
    params: Params = None
    batch_size: int = 256
    autocast: torch.dtype | str | None = AUTO
    seed: int = 0
    progress: bool = False
    max_increase: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least_one(batch_size=self.batch_size)
        SampleLoss(self.loss_fn)  # refuses what is no function
        if isinstance(self.autocast, str) and self.autocast != AUTO:
            raise ValueError(f"autocast is {self.autocast!r}, expected a floating dtype, 'auto' or None")
        check_at_least_zero(max_increase=self.max_increase, unbounded=True)

    @checked
    def __call__(self, model: nn.Module, request: Request) -> Outcome:
        """Apply the method to a copy of `model`.

        Raises:
            ValueError: an argument is out of range or does not fit the others, the model must be in eval mode, or
                importances or gradients are not finite.
        """
        start = time.perf_counter()
        with showing_passes(self.progress):
            self._check(model, request)
            pace = self._pace(model, request)
            level = self._level(model, request, pace) if self._finds_strength else None
            seconds = time.perf_counter() - start
            outcome = self._on_copy(model, request, Findings(level, pace))
            outcome.seconds += seconds
            if not outcome.evidence:  # a method that tries others has judged them
                level = self._level(model, request, pace) if level is None else level
                self._judge(model, outcome, request, level, pace)
        return outcome

    @property
    def _finds_strength(self) -> bool:
        """Whether the method is to find its strength by itself."""
        return self._strength is not None and getattr(self, self._strength) == AUTO

    @property
    def _harm(self) -> Loss:
        """The loss that harm is measured by, of texts in nats a token."""
        return counted(self.loss_fn, "sample")

    @property
    def _stored(self) -> Factors | None:
        """Factors of the training data that stand for the retain set, where the method has them."""
        return None

    def _check(self, model: nn.Module, request: Request) -> None:
        if self._stored is None and not request.has_retain_set:
            raise ValueError(
                f"request: has no retain set, which {type(self).__name__} needs; methods with a field named factors "
                "take those of the training data in its place"
            )
        check_call(model, self.loss_fn, request.dataset, name="request", deterministic=self._needs_eval)

    def _pace(self, model: nn.Module, request: Request) -> Pace:
        return find_pace(model, self.loss_fn, request.dataset, self.batch_size, self.autocast)

    def _level(self, model: nn.Module, request: Request, pace: Pace) -> UnseenLevel:
        return unseen_level(model, request, request.held_out, **pace.settings)

    def _judge(self, before: nn.Module, outcome: Outcome, request: Request, level: UnseenLevel, pace: Pace) -> None:
        outcome.forgotten, outcome.evidence = judge(before, outcome.model, request, level, **pace.settings)

    def _on_copy(self, model: nn.Module, request: Request, findings: Findings) -> Outcome:
        """The outcome without a verdict. The strength is found where the level of an unseen model is given.

        Of labels that occur nowhere else, as of a class, the last layer alone is changed where that forgets at less
        cost to what stays than changing all parameters.
        """
        outcome, standing = self._attempt(model, request, findings)
        names = last_layer(model)
        given = self.params is not None or self._stored is not None or self._needs_whole
        if standing is None or standing.is_good or given or names == self._names(model):
            return outcome
        narrow, other = replace(self, params=names)._attempt(model, request, replace(findings, first_direction=None))
        best = outcome
        if other is not None and other.rank < standing.rank:
            best = narrow
            best.info["narrowed_to"] = names
        best.seconds = outcome.seconds + narrow.seconds
        best.gradient_evaluations = outcome.gradient_evaluations + narrow.gradient_evaluations
        return best

    def _attempt(self, model: nn.Module, request: Request, findings: Findings) -> tuple[Outcome, Standing | None]:
        """The outcome, and how far the model is where a class was to be forgotten and the strength was found."""
        start, level, pace = time.perf_counter(), findings.level, findings.pace
        working = independent(model)
        names = self._names(working)
        frozen_prefix = FrozenPrefix(working, None if self._needs_whole else names, request.dataset)
        head = frozen_prefix.head
        own_pace = self._head_pace(frozen_prefix, request.dataset, pace)
        on_features = request_on_features(request, frozen_prefix, batch_size=pace.batch_size, dtype=pace.autocast)
        work = Work(self, head, on_features, names, own_pace, findings.first_direction)
        if level is not None and self._finds_strength:
            work.aim_at(level)
        before = {name: t.clone() for name, t in head.state_dict().items()}
        info: dict[str, Any] = {"pace": pace.described(own_pace)}
        applied, reason, loss = True, None, work.initial_loss
        try:
            self._apply(work, info)
            if all(torch.equal(t, before[name]) for name, t in head.named_parameters()):
                raise NotApplied("no parameter changed")
            loss = self._final_loss(work)
        except NotApplied as found:
            head.load_state_dict(before)
            applied, reason = False, str(found)
        standing = None
        if work.gauge is not None and not work.gauge.nothing_to_forget and level is not None and level.never_given:
            standing = work.gauge.standing()
        if not work.measures:
            info["estimated_increase"] = loss
        outcome = Outcome(
            model=rewrapped(working, model),
            applied=applied,
            reason=reason,
            loss_before=work.initial_loss if work.measures else math.nan,
            loss_after=loss if work.measures else math.nan,
            seconds=time.perf_counter() - start,
            gradient_evaluations=work.gradient_evaluations,
            info=info,
        )
        return outcome, standing

    def _head_pace(self, frozen_prefix: FrozenPrefix, data: Dataset[Any], pace: Pace) -> Pace:
        """How the head goes through its inputs, where the whole model goes through the data at `pace`."""
        if frozen_prefix.prefix is not None:
            inputs = frozen_prefix.live(data, dtype=pace.autocast)
            pace = find_pace(frozen_prefix.head, self.loss_fn, inputs, self.batch_size, self.autocast)
        return replace(pace, autocast=None) if self._exact and self.autocast == AUTO else pace

    def _names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that the method may change."""
        return select_params(model, self.params)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        """Change ``work.model`` in place; NotApplied makes the caller restore it."""
        raise NotImplementedError

    def _final_loss(self, work: Work) -> float:
        """Loss on ``request.target`` after the change; NotApplied where it is above the limit of ``max_increase``."""
        loss = work.corrected_loss()
        refuse_harm(work.request, work.initial_loss, loss, self.max_increase)
        return loss


def allowed_increase(request: Request, max_increase: float | None) -> float:
    """The largest increase of the mean loss on ``request.target`` that is applied; see :class:`Method`."""
    if max_increase is not None:
        return max_increase
    return MAX_REMOVAL_LOSS_INCREASE if request.corrected is None else 0.0


def refuse_harm(request: Request, before: float, after: float, max_increase: float | None) -> None:
    """Compare mean losses on ``request.target``.

    Raises:
        NotApplied: the loss increases by more than is allowed, or is not finite.
    """
    what = "retain set" if request.corrected is None else "corrected data"
    estimated = "" if request.something_stays else ", as the factors estimate it,"
    limit = allowed_increase(request, max_increase)
    if not math.isfinite(after) or after > before + limit:
        raise NotApplied(
            f"the mean loss on the {what}{estimated} would change from {before:.6g} to "
            f"{after:.6g}, expected an increase of at most max_increase={limit:g}"
        )


class Work:
    """The state of one call of a method: the model's head, the request in its inputs, and the gradients counted so far.

    `first_direction` gives the first step's direction where it was solved for together with those of other requests.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        request: Request,
        names: list[str],
        pace: Pace,
        first_direction: FirstDirection | None = None,
    ):
        self.method, self.model, self.request, self.names, self.pace = method, model, request, names, pace
        self.first_direction = first_direction
        self.gradient_evaluations = 0
        self.gauge: Gauge | None = None
        self.target, self.measures = request.target, request.something_stays
        self._increase: LossIncrease | None = None
        if not self.measures:
            assert method._stored is not None, "the method was checked"
            self._increase = LossIncrease(method._stored, ChosenParameters(model, names), len(request.forget))
        self.initial_loss = self.corrected_loss()

    def aim_at(self, level: UnseenLevel) -> None:
        """Have the method find the strength at which the forget set is at this level, where it is known."""
        if not level.known:
            return
        request, settings = self.request, {"seed": self.method.seed, **self.pace.settings}
        forget = Tried(request.forget_set, FORGET_TRIED, **settings)
        kept = Tried(self.target, STAYS_TRIED, **settings)
        known: Known = forget.known
        aim, halvings = level.accuracy, HALVINGS
        if aim is None:  # of texts
            loss, held_out = level.loss, request.held_out if level.of_held_out else None
            assert loss is not None, "the level is known"
            unseen = loss.estimate if held_out is None else Tried(held_out, STAYS_TRIED, **settings)
            known, aim, halvings = likelier(forget, unseen), loss.from_estimate, TEXT_HALVINGS
        allowed = allowed_increase(request, self.method.max_increase)
        given = self.model, self.method._harm, known, kept, aim, allowed
        self.gauge = Gauge(*given, halvings=halvings, **self.pace.settings)

    def least_strength(
        self, change: Callable[[float], Any], guess: float, info: dict[str, Any], *, most: float = math.inf
    ) -> float:
        """The least strength at which ``change(strength)`` makes the model forget; `guess` where nothing tells.

        Where there was nothing to forget, it is `guess`, or as much less as leaves what stays as it was. The model is
        as it was afterwards.

        Args:
            change: changes the chosen parameters in place.
            guess: where to start.
            info: gets ``"forgets"``, whether that strength is enough.
            most: no strength is greater.

        Raises:
            NotApplied: every strength does more harm than is allowed.
        """
        if self.gauge is None:
            return guess
        gauge, parameters = self.gauge, ChosenParameters(self.model, self.names)
        start = parameters.read()

        def then(answer: Callable[[], T]) -> Callable[[float], T]:
            def asked(strength: float) -> T:
                parameters.write(start, {}, 0.0)
                change(strength)
                return answer()

            return asked

        if gauge.nothing_to_forget:
            gentle = then(gauge.gentle)
            strength = guess if gentle(guess) else greatest_strength(gentle, guess)
        else:
            asked = then(gauge.forgotten), then(gauge.harmless)
            found = least_strength(*asked, guess, most=most, halvings=gauge.halvings)
            strength, info["forgets"] = found.strength, found.forgets
            if found.forgets:
                strength = cheaper_strength(then(gauge.standing), strength)
        parameters.write(start, {}, 0.0)
        if not strength:
            raise NotApplied("every strength raises the loss on what stays by more than max_increase allows")
        return strength

    def subtract(self, direction: Vector, factor: float | None, info: dict[str, Any]) -> None:
        """``theta <- theta - factor * direction``; where None is given, with the least factor that forgets.

        Args:
            direction: for each of the chosen parameters.
            factor: noted in `info` as ``"factor"``.

        Raises:
            NotApplied: as for :meth:`least_strength`.
        """
        parameters = ChosenParameters(self.model, self.names)

        def move(by: float) -> None:
            parameters.write(parameters.read(), direction, by)

        info["factor"] = factor = self.least_strength(move, 1.0, info) if factor is None else factor
        move(factor)

    def losses(self, data: Data) -> Tensor:
        """The loss of each sample by the model as it is now, (N,)."""
        return sample_losses(self.model, self.method.loss_fn, data, **self.pace.settings)

    def corrected_loss(self) -> float:
        """Mean loss of the model, as it is now, on the corrected data, or on the retain set of a removal; see `_harm`.

        Where nothing that stays is at hand, by how much that loss has increased, as the stored factors estimate it.
        """
        if self._increase is not None:
            return self._increase()
        return mean_loss(self.model, self.method._harm, self.target, **self.pace.settings)


def chance_loss(work: Work, data: Data) -> float | None:
    """Cross-entropy of uniform guessing, log(classes), in nats; None where the model does not give class scores."""
    return guessing_loss(*first_output(work, data))


def first_output(work: Work, data: Data) -> tuple[Any, Nest]:
    """What the model returns for the first samples, and their labels: these tell what the labels mean."""
    device = model_device(work.model)
    x, y = (moved(nest, device) for nest in Samples(data).read(slice(0, 2)))  # statistics of one may not exist
    with evaluating(work.model) as model:
        return rows(call(model, x), count(y)), y
