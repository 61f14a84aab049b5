"""What every unlearning method promises, as checks that its author can run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnx._copies import independent
from unlearnx._data import materialize
from unlearnx._random import forked_random
from unlearnx.methods import Method, Outcome, Pipeline, Request
from unlearnx.metrics import mean_loss

__all__ = ["METHOD_CHECKS", "check_method"]

SAMPLES, CLASSES, FORGOTTEN = 60, 3, 1  # of the images that methods are checked on
ROUNDING = 1e-5  # of mean losses in float32, relative


def check_method(method: Method | Pipeline) -> None:
    """Check what all methods promise, on a small network that has learned three classes of images.

    :data:`METHOD_CHECKS` has the promises as functions, for a test of each:
    ``@pytest.mark.parametrize("check", METHOD_CHECKS)``. The method is asked to forget a class; where it refuses
    removals, by an error about ``request``, to learn other labels for it.

    Args:
        method: with the arguments to be checked; few epochs will do.

    Raises:
        AssertionError: a promise is not kept; the message says which.
        TypeError: it is no method.
        ValueError: the method raises it.

    Example:
        >>> @dataclass
        ... class Shrink(Method):
        ...     def _apply(self, work, info):
        ...         for name, p in work.model.named_parameters():
        ...             p.data.mul_(0.9 if name in work.names else 1.0)
        >>> check_method(Shrink())
    """
    if not isinstance(method, (Method, Pipeline)):
        raise TypeError(f"method is of type {type(method).__name__}, expected a method, such as SSD()")
    for check in METHOD_CHECKS:
        check(method)


def leaves_the_model_alone(method: Method | Pipeline) -> None:
    """The model that is given keeps its values, modes, gradients and hooks, and the data theirs."""
    model = _model()
    before = _state(model)
    request, _ = _asked(method, model)
    for what, now in _state(model).items():
        _promise(method, _same(before[what], now), f"leave the {what} of the model that it is given as they were")
    read = list(materialize(request.dataset))
    _promise(method, _same(list(_data()), read), "leave the data as they were")


def returns_a_model_like_it(method: Method | Pipeline) -> None:
    """The outcome's model is another of the same kind, in the same modes; and what was done is told truly."""
    model = _model()
    _, outcome = _asked(method, model)
    made, before, after = outcome.model, model.state_dict(), outcome.model.state_dict()
    _promise(method, type(made) is type(model), f"return a {type(model).__name__}, but a {type(made).__name__}")
    alike = list(before) == list(after) and all(t.shape == after[name].shape for name, t in before.items())
    _promise(method, alike, "return a model with the same parameters and buffers")
    shared = {t.data_ptr() for t in before.values()} & {t.data_ptr() for t in after.values()}
    _promise(method, not shared, "return a model that shares no memory with the one that it is given")
    given, returned = _state(model), _state(made)
    for what in ("modes", "gradients", "hooks"):
        _promise(method, _same(given[what], returned[what]), f"return a model with the {what} of the one it is given")
    _promise(method, all(bool(t.isfinite().all()) for t in after.values()), "return finite values")
    moved = any(not torch.equal(p, before[name]) for name, p in made.named_parameters())
    _promise(method, moved == outcome.applied, f"say applied={moved}, as the parameters have it")
    _promise(method, outcome.applied or bool(outcome.reason), "give the reason why it was not applied")
    _promise(method, outcome.seconds > 0 and outcome.gradient_evaluations >= 0, "count seconds and gradients")


def repeats_by_its_seed(method: Method | Pipeline) -> None:
    """The same seed gives the same model to the bit, whatever torch's own generator holds, which is left alone."""
    made = []
    for drawn in (1, 2):
        with forked_random(seed=drawn):
            before = torch.get_rng_state()
            made.append(_asked(replace(method, seed=7), _model())[1].model.state_dict())
            alone = torch.equal(before, torch.get_rng_state())
        _promise(method, alone, "leave torch's own random numbers alone: it needs a torch.Generator with its seed")
    _promise(method, _same(*made), "give the same model for the same seed")


def refuses_harm(method: Method | Pipeline) -> None:
    """With ``max_increase=0`` the mean loss on what stays, or on corrected data, does not rise; losses are true."""
    model = _model()
    request, outcome = _asked(replace(method, max_increase=0.0), model)
    before, after = (mean_loss(m, F.cross_entropy, request.target) for m in (model, outcome.model))
    rounding = ROUNDING * (1 + abs(before))
    for what, told, found in (("before", outcome.loss_before, before), ("after", outcome.loss_after, after)):
        _promise(method, math.isclose(told, found, abs_tol=rounding), f"say loss_{what}={found:.6g}, but {told:.6g}")
    _promise(method, after <= before + rounding, f"refuse a loss of {after:.6g} after {before:.6g} by max_increase=0")


def leaves_what_was_not_chosen(method: Method | Pipeline) -> None:
    """Neither parameters besides ``params`` nor other layers' buffers change; or the choice is refused."""
    for stage in method.stages if isinstance(method, Pipeline) else [method]:
        for layer, chosen in (("0", ["0.weight", "0.bias"]), ("7", ["7.weight", "7.bias"])):
            model = _model()
            try:
                _, outcome = _asked(replace(stage, params=chosen), model)
            except ValueError:
                continue  # said, not done: the method has its work elsewhere
            for name, t in model.state_dict().items():
                stays = name.startswith(f"{layer}.") or torch.equal(t, outcome.model.state_dict()[name])
                _promise(stage, stays, f"leave {name} as it was with params={chosen}")


METHOD_CHECKS: tuple[Callable[[Method | Pipeline], None], ...] = (
    leaves_the_model_alone,
    returns_a_model_like_it,
    repeats_by_its_seed,
    refuses_harm,
    leaves_what_was_not_chosen,
)
"""What all methods promise: functions of a method, which raise an AssertionError where it breaks the promise."""


def _promise(method: Method | Pipeline, kept: bool, promised: str) -> None:
    if not kept:
        raise AssertionError(f"{type(method).__name__} does not {promised}")


def _data() -> tuple[Tensor, Tensor]:
    """Images (N, 1, 6, 6), each class with a bright row of its own, and their labels."""
    x = torch.randn(SAMPLES, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(SAMPLES) % CLASSES
    x[torch.arange(SAMPLES), 0, 2 * y] += 2.0
    return x, y


@lru_cache(maxsize=1)
def _learned() -> nn.Module:
    x, y = _data()
    with forked_random(seed=0), torch.enable_grad():
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 8), nn.ReLU()
        ).append(nn.Linear(8, CLASSES))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def _model() -> nn.Module:
    """A network that knows the images, in eval mode but for a layer that does the same in either."""
    model = independent(_learned())
    model.get_submodule("3").train()
    return model


def _asked(method: Method | Pipeline, model: nn.Module) -> tuple[Request, Outcome]:
    """What the method makes of a request that it takes: a removal of a class, or a correction of its labels."""
    x, y = _data()
    removal = Request.remove_class((x, y), FORGOTTEN)
    try:
        return removal, method(model, removal)
    except ValueError as error:
        if not str(error).startswith("request"):
            raise
    correction = Request.correct((x, y), (x, torch.where(y == FORGOTTEN, (y + 1) % CLASSES, y)))
    return correction, method(model, correction)


def _state(model: nn.Module) -> dict[str, Any]:
    """Copies of all that belongs to a model."""
    return {
        "values": {name: t.clone() for name, t in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "hooks": [[len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)] for m in model.modules()],
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
