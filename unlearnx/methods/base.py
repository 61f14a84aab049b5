"""What every method has in common: the input model is left alone, and nothing harmful is applied."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from unlearnx._calls import check_call
from unlearnx._checks import (
    Params,
    check_at_least_one,
    check_at_least_zero,
    model_device,
    select_params,
)
from unlearnx._copies import independent
from unlearnx._data import materialize
from unlearnx._losses import Loss
from unlearnx._modes import evaluating
from unlearnx._vectors import Vector
from unlearnx.curvature.prefix import FrozenPrefix
from unlearnx.methods.request import Request
from unlearnx.metrics import mean_loss


@dataclass
class Outcome:
    """What a method made of a model.

    Attributes:
        model: the new model, in the modes of the old one.
        seconds: wall-clock time of the whole call.
        gradient_evaluations: per-sample gradients taken, counted with repetition; a curvature product counts one
            for each of its samples.
        info: what else the method has to say. ``applied`` tells whether the model was changed; where not,
            ``reason`` tells why. ``corrected_loss`` holds the mean loss on the corrected data of the old and of the
            new model.

    Example:
        >>> x, y = torch.randn(60, 8), torch.arange(60) % 3
        >>> outcome = FineTune()(nn.Linear(8, 3), Request.remove((x, y), range(6)))
        >>> outcome.info["applied"], outcome.gradient_evaluations
        (True, 54)
    """

    model: nn.Module
    seconds: float
    gradient_evaluations: int
    info: dict[str, Any] = field(default_factory=dict)


# Writes what there is to say of the step to its record and returns its direction; None where there is no step to take.
Opening = Callable[[dict[str, Any]], Vector | None]


class NotApplied(Exception):
    """A method found that its result would do harm; the message is the reason that the outcome reports."""


@dataclass(kw_only=True)
class Method:
    """An unlearning method: ``method(model, request) -> Outcome``.

    Args:
        loss_fn: ``loss_fn(output, y)``: losses per sample, their mean or their sum.
        params: parameters that may change: names, ``"last:K"``, or None for all that require gradients. The part
            of the model before them runs once.
        batch_size: samples a pass.
        autocast: dtype of the layers that gain from it (see :func:`unlearnx.models.fast_dtype`); None computes
            in the model's own.
        seed: of every random choice.
        progress: show progress bars (needs ``unlearnx[experiments]``).
        max_increase: largest rise of the mean loss on the corrected data, or on the retained data of a removal, that
            the result may cost, in the unit of the loss (nats for cross-entropy); beyond it nothing is applied. None
            stands for 0.5 where points are removed, which costs a little, and for 0 where they are corrected.

    Example:
        >>> @dataclass
        ... class Shrink(Method):
        ...     def _apply(self, work, info):
        ...         for name, p in work.model.named_parameters():
        ...             p.data.mul_(0.9 if name in work.names else 1.0)
        >>> Shrink()(nn.Linear(8, 3), Request.remove((torch.randn(60, 8), torch.arange(60) % 3), [0])).info["applied"]
        True
    """

    _needs_eval: ClassVar[bool] = True

    loss_fn: Loss = F.cross_entropy
    params: Params = None
    batch_size: int = 256
    autocast: torch.dtype | None = None
    seed: int = 0
    progress: bool = False
    max_increase: float | None = None

    def __post_init__(self) -> None:
        check_at_least_one(batch_size=self.batch_size)
        check_at_least_zero(max_increase=self.max_increase, unbounded=True)

    def __call__(self, model: nn.Module, request: Request) -> Outcome:
        """Apply the method to a copy of `model`.

        Raises:
            ValueError: an argument does not fit, the model is in a mode that changes the answer, or importances or
                gradients are not finite.
        """
        return self._on_copy(model, request, None)

    def _on_copy(self, model: nn.Module, request: Request, opening: Opening | None) -> Outcome:
        start = time.perf_counter()
        check_call(model, self.loss_fn, request.dataset, name="request", deterministic=self._needs_eval)
        working = independent(model)
        names = self._names(working)
        cut = FrozenPrefix(working, names, request.dataset)
        work = Work(self, cut.head, request.features(cut, batch_size=self.batch_size), names, opening)
        before = {name: t.clone() for name, t in cut.head.state_dict().items()}
        info: dict[str, Any] = {}
        try:
            self._apply(work, info)
            loss = self._judge(work)
        except NotApplied as reason:
            cut.head.load_state_dict(before)
            info.update(applied=False, reason=str(reason), corrected_loss=[work.initial_loss] * 2)
        else:
            info.update(applied=True, corrected_loss=[work.initial_loss, loss])
        return Outcome(working, time.perf_counter() - start, work.gradient_evaluations, info)

    def _names(self, model: nn.Module) -> list[str]:
        """Parameters that the method may change."""
        return select_params(model, self.params)

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        """Change ``work.model`` in place; raise NotApplied to leave it as it was."""
        raise NotImplementedError

    def _judge(self, work: Work) -> float:
        """Loss on the corrected data after the change; refuse one that rises by more than ``max_increase``."""
        loss = work.corrected_loss()
        refuse_harm(work.request, work.initial_loss, loss, self.max_increase)
        return loss


def allowed_increase(request: Request, max_increase: float | None) -> float:
    """What the mean loss on the corrected data may rise by; see :class:`Method` for ``max_increase``."""
    if max_increase is not None:
        return max_increase
    return 0.5 if request.corrected is None else 0.0


def refuse_harm(request: Request, before: float, after: float, max_increase: float | None) -> None:
    """Compare mean losses on the corrected data.

    Raises:
        NotApplied: the loss rises by more than it may, or is not finite.
    """
    removal = request.corrected is None
    limit = allowed_increase(request, max_increase)
    if not math.isfinite(after) or after > before + limit:
        raise NotApplied(
            f"the loss on the {'retained' if removal else 'corrected'} data would go from {before:.6g} to {after:.6g}"
            + (f", by more than max_increase={limit:g}" if limit else "")
        )


class Work:
    """The head of a model at work on a request, with what has been spent.

    An `opening` is a first direction that was found beforehand, together with those of other requests.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        request: Request,
        names: list[str],
        opening: Opening | None = None,
    ):
        self.method, self.model, self.request, self.names = method, model, request, names
        self.opening = opening
        self.gradient_evaluations = 0
        self.target = TensorDataset(*materialize(request.target))
        self.initial_loss = self.corrected_loss()

    def corrected_loss(self) -> float:
        """Mean loss of the model, as it is now, on the corrected data."""
        return mean_loss(
            self.model,
            self.method.loss_fn,
            self.target,
            batch_size=self.method.batch_size,
            autocast=self.method.autocast,
        )


def chance_loss(work: Work, x: Tensor, y: Tensor) -> float | None:
    """The cross-entropy of a guess among the classes, in nats; None where the model does not give class scores."""
    with evaluating(work.model) as model:
        output = model(x[:1].to(model_device(work.model)))
    if y.is_floating_point() or output.dim() < 2 or output.shape[1] < 2:
        return None
    return math.log(output.shape[1])
