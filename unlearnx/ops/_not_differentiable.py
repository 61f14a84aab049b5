"""Ops without a derivative: a backward pass through them raises instead of giving zeros silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearnx.ops._switches import library


def not_differentiable(*names: str) -> None:
    """Registers that ops of unlearnx have no derivative."""
    for name in names:
        library.impl(name, _kernel(getattr(torch.ops.unlearnx, name).default), "Autograd", with_keyset=True)


def _kernel(op):
    def below(keyset: torch._C.DispatchKeySet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        if recorded(values):
            call = lambda: below(keyset, args, kwargs)  # noqa: E731
            return _Refusal.apply(op.name(), call, *_tensors(values))  # type: ignore[attr-defined]
        return below(keyset, args, kwargs)

    return kernel


def recorded(values: Sequence[Any]) -> bool:
    """Whether autograd is to know of a call with these arguments, in reverse or in forward mode."""
    if torch.is_grad_enabled():
        for t in values:  # a generator would take longer than a small op
            if isinstance(t, Tensor) and t.requires_grad:
                return True
    forward = torch.autograd.forward_ad
    return forward._current_level >= 0 and any(forward.unpack_dual(t).tangent is not None for t in _tensors(values))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    return (t for t in values if isinstance(t, Tensor))


class _Refusal(torch.autograd.function._SingleLevelFunction):
    @staticmethod
    def forward(ctx, name, call, *tensors):
        ctx.name = name
        return call()

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError(f"the derivative for {ctx.name} is not implemented")
