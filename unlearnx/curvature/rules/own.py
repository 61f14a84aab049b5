"""Rules of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.library import CustomOpDef
from torch.overrides import handle_torch_function, has_torch_function, resolve_name

from unlearnx.curvature.contributions import Contribution, StoredGradients
from unlearnx.curvature.places import Place
from unlearnx.curvature.rules.registry import Parts, Recorder, Rule, rule_of
from unlearnx.ops._dtypes import compute_dtype

Gradients = Callable[..., Iterable[tuple["Tensor | None", "Tensor | Contribution"]]]


def register_rule(function: Callable[..., Any], gradients: Gradients) -> Callable[..., Any]:
    """Per-sample gradients of a layer of your own: its parameters then need no ``vmap(grad)``.

    Every use of the function on parameters is covered, in any module and any number of times, where its result is one
    tensor and samples are the first dimension of that tensor. As all rules, it is compared with autograd on the first
    samples of a call; where it disagrees, the parameters go through ``vmap(grad)``.

    Args:
        function: called with the parameters, positionally or by name: a function of Python, which may call an
            ``autograd.Function``, one of torch, or an operator of ``torch.library``.
        gradients: ``gradients(dy, *args, **kwargs)`` gets dy, the gradient of the losses with respect to the result,
            and what the function got, detached. It yields pairs of a parameter among the arguments and its samples'
            gradients, shaped (N, *parameter.shape). For a weight that is multiplied with its input, yield
            ``LinearWeight(x, dy)`` of :mod:`unlearnx.curvature.contributions` instead, which stores no gradients.

    Returns:
        What the model must call: the function itself, or, of a function of Python, one that does the same and that
        engines can watch.

    Raises:
        TypeError: an argument is no function.

    Example:
        >>> def wave(x, rate):
        ...     return torch.sin(rate * x)
        >>> def wave_gradients(dy, x, rate):
        ...     yield rate, dy * torch.cos(rate * x) * x
        >>> wave = register_rule(wave, wave_gradients)
        >>> class Wave(nn.Linear):
        ...     def forward(self, x):
        ...         return wave(super().forward(x), self.bias)
        >>> fisher = fisher_diagonal(Wave(4, 3), nn.functional.cross_entropy, (torch.randn(8, 4), torch.arange(8) % 3))
        >>> fisher["bias"].shape
        torch.Size([3])
    """
    for name, value in (("function", function), ("gradients", gradients)):
        if not callable(value):
            raise TypeError(f"{name} is {value!r}, expected a function")
    seen, called = _seen_as(function)

    class Own(Rule):
        def __init__(self, *args: Any, **kwargs: Any):
            self.args, self.kwargs = args, kwargs

        def watched(self, tape: Recorder) -> Any:
            result = function(*self.args, **self.kwargs)
            if not isinstance(result, Tensor) or tape.place_of_result(result) != Place(0):
                return NotImplemented

            args = tuple(_detached(value) for value in self.args)
            kwargs = {name: _detached(value) for name, value in self.kwargs.items()}

            def contributions(dy: Tensor) -> Parts:
                for parameter, rows in gradients(dy, *args, **kwargs):
                    yield parameter, rows if isinstance(rows, Contribution) else _stored(rows, parameter)

            parameters = [t for t in (*_tensors(args), *_tensors(kwargs.values())) if tape.is_weight(t)]
            return tape.watch(result, parameters, contributions)

    rule_of(seen)(Own)
    return called


def _seen_as(function: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What function modes see of calls of the function, and what is to be called so that they do."""
    if isinstance(function, CustomOpDef):
        return function._opoverload, function
    if isinstance(function, (OpOverload, OpOverloadPacket)) or resolve_name(function) is not None:
        return function, function

    @wraps(function)
    def visible(*args: Any, **kwargs: Any) -> Any:
        tensors = (*_tensors(args), *_tensors(kwargs.values()))
        if has_torch_function(tensors):
            return handle_torch_function(visible, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return visible, visible


def _detached(value: Any) -> Any:
    """A copy without the graph; parameters have none, and stay what they are known by."""
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value


def _stored(rows: Tensor, parameter: Tensor | None) -> StoredGradients:
    if parameter is not None and rows.shape[1:] != parameter.shape:
        raise ValueError(
            f"gradients: yielded shape {list(rows.shape)} for a parameter of shape {list(parameter.shape)}, expected "
            "(N, *parameter.shape)"
        )
    return StoredGradients(rows.to(compute_dtype(rows)))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))
