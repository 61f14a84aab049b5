"""The base class of methods that train the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnx._calls import check_call
from unlearnx._checks import check_at_least_one, check_at_least_zero, qualified
from unlearnx._data import Data, size
from unlearnx._losses import Loss
from unlearnx._modes import evaluating, modes_kept
from unlearnx.methods.base import Method, NotApplied, Work
from unlearnx.methods.request import Request
from unlearnx.methods.rounds import FEW_STEPS, MOST_SAMPLES, PASSES, STEPS, Rounds, Train, gently, of_round
from unlearnx.models.training import Training


@dataclass(kw_only=True)
class TrainedMethod(Method):
    """A method that trains; afterwards all modules are in the train or eval mode that they had before.

    Args:
        weight_decay: weight decay of AdamW.
    """

    _needs_eval: ClassVar[bool] = False
    _strength: ClassVar[str | None] = "epochs"
    _fewest_epochs: ClassVar[int] = 1
    _nominal_epochs: ClassVar[int] = 1  # where nothing tells how much is to be forgotten
    _steps: ClassVar[int] = STEPS  # of the optimizer in a round, at least
    _keeps: ClassVar[bool] = True  # whether training teaches what stays as well
    _reads_samples: ClassVar[bool] = False  # whether it takes gradients of single samples, in eval mode, as well

    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        given = vars(self)  # most methods have these
        check_at_least = check_at_least_one if self._fewest_epochs == 1 else check_at_least_zero
        check_at_least(**{name: given[name] for name in ("epochs",) if self._gives_epochs()})
        check_at_least_zero(**{name: given[name] for name in ("lr", "weight_decay") if name in given})

    def _check(self, model: nn.Module, request: Request) -> None:
        super()._check(model, request)
        if self._reads_samples:
            with evaluating(model) as lent:
                check_call(lent, self.loss_fn, request.dataset, name="request")

    def _gives_epochs(self) -> bool:
        return "epochs" in vars(self) and not self._finds_strength

    def _apply(self, work: Work, info: dict[str, Any]) -> None:
        try:
            self._fit(work, info)
        except FloatingPointError as error:
            raise NotApplied(str(error)) from error

    def _fit(self, work: Work, info: dict[str, Any]) -> None:
        """Train ``work.model``; where this raises FloatingPointError, the method is reported as not applied."""
        train = self._trainer(work, info)
        epochs = vars(self)["epochs"] if self._gives_epochs() else self._nominal_epochs
        if work.gauge is None:
            train(epochs, 1.0)
        elif work.gauge.nothing_to_forget:
            gently(work.model, work.gauge, train, epochs)
        else:
            trained_on = work.target if self._keeps else work.request.forget_set
            steps_an_epoch = -(-size(trained_on) // self.batch_size)
            epochs = -(-(self._steps if self._keeps else FEW_STEPS) // steps_an_epoch)
            heal: Train | None = partial(self._heal, work, info) if self._keeps else None
            part = None
            on_all = self._trainer_on_all(work, info) if size(trained_on) > MOST_SAMPLES else None
            if on_all is not None:
                epochs, part, train, heal = PASSES, train, on_all, None  # the training itself heals
            Rounds(work.model, work.gauge, train, heal, epochs, info, part).run()

    def _heal(self, work: Work, info: dict[str, Any], epochs: int, rate: float) -> None:
        """Train on what stays."""
        self._training(work, info)(epochs, rate)

    def _trainer(self, work: Work, info: dict[str, Any]) -> Train:
        """Prepare the training, of ``train(epochs, rate)``, with `rate` times the method's learning rates."""
        raise NotImplementedError

    def _training(self, work: Work, info: dict[str, Any], **settings: Any) -> Train:
        """The training of :meth:`_train` at the method's own learning rate, with these settings."""

        def train(epochs: int, rate: float) -> None:
            self._train(work, info, epochs, rate * vars(self)["lr"], **settings)

        return train

    def _trainer_on_all(self, work: Work, info: dict[str, Any]) -> Train | None:
        """The same training, of which an epoch reads all of many samples; None where a part of them does as well."""
        return None

    def _train(
        self,
        work: Work,
        info: dict[str, Any],
        epochs: int,
        lr: float,
        *,
        data: Data | None = None,
        loss_fn: Loss | None = None,
        anchor: float = 0.0,
        l1: float = 0.0,
        eval_mode: bool = False,
        around: Callable[[nn.Module], nn.Module] | None = None,
        on_all: bool = False,
    ) -> None:
        """Train the model.

        Args:
            data: the data; None for the corrected data, or the retain set.
            loss_fn: the loss; None for the method's own.
            l1: weight of the sum of the chosen parameters' absolute values; it falls linearly to zero over the steps.
            eval_mode: train in eval mode. BatchNorm would otherwise add statistics of the forget set to its own.
            around: makes a module around the model, its attribute ``model``, whose outputs `loss_fn` is given.
            on_all: whether an epoch reads all of many samples, and not a part, while the strength is being found.
        """
        data = work.request.trained_target if data is None else data
        seed = self.seed + info.get("trainings", 0)
        if work.gauge is not None and not on_all:
            data = of_round(data, seed)
        training = Training(
            epochs,
            lr,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            anchor=anchor,
            loss_fn=self.loss_fn if loss_fn is None else loss_fn,
            params=work.names if around is None else [f"model.{name}" for name in work.names],
            autocast=work.pace.autocast,
            seed=seed,
            progress=self.progress,
        )
        steps = epochs * -(-size(data) // self.batch_size)
        modes = _train_mode(work.model, set() if eval_mode else set(work.names))
        with modes, pulled_to_zero(work.model, work.names, l1, steps):
            trained = work.model if around is None else around(work.model)
            info["training_seconds"] = info.get("training_seconds", 0.0) + training.run(trained, data)
        if around is not None:  # it may be trained in a memory order that the whole model does not take
            work.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        info["trainings"] = info.get("trainings", 0) + 1
        work.gradient_evaluations += epochs * size(data)


@contextmanager
def pulled_to_zero(model: nn.Module, names: list[str], weight: float, steps: int) -> Iterator[None]:
    """Within this context, gradients have that of ``weight * ||p||_1`` added, which is gone after so many steps."""

    def pull(p: Tensor) -> Callable[[Tensor], Tensor]:
        left = iter(range(steps, 0, -1))
        return lambda gradient: gradient + weight * next(left, 0) / steps * p.detach().sign()

    chosen = {name: model.get_parameter(name) for name in names} if weight else {}
    with gradients_changed(model, {name: pull(p) for name, p in chosen.items() if p.requires_grad}):
        yield


@contextmanager
def gradients_changed(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within this context, the gradients of parameters are what the functions make of them, by name."""
    handles = [model.get_parameter(name).register_hook(change) for name, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _train_mode(model: nn.Module, chosen: set[str]) -> Iterator[None]:
    """Modules whose parameters are all chosen are in train mode, the others in eval mode.

    Modules without parameters, such as dropout, are in train mode unless nothing is chosen.
    """
    with modes_kept(model):
        for name, module in model.named_modules():
            own = {qualified(name, p) for p, _ in module.named_parameters()}
            module.training = bool(chosen) and own <= chosen
        yield
