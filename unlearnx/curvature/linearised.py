"""Functions that keep their inputs alone, however often they are differentiated.

A Gauss-Newton product multiplies by the Jacobian J of the model and by its transpose. Autograd, which knows ``J^T u``
only, gets J by differentiating that with respect to u, and keeps for it what second derivatives would need: the
gradients that it has recorded, although they are zeros here, and some intermediate results. The functions here compute
both products from their inputs. So they do with what a Hessian product asks for, which is the gradient of
``dy . J change``: the gradients of their outputs are kept besides, and no intermediate results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unlearnx.ops._recording import Recording

Optional = Sequence["Tensor | None"]


class Linearised:
    """A function ``value(*xs)`` of tensors, with both products of its Jacobian. None stands for an input not given."""

    value: Callable[..., Tensor]
    is_linear = False  # in its inputs: the Jacobian is the same everywhere

    def tangent(self, changes: Optional, xs: Optional) -> Tensor:
        """The change of the value for the changes of the inputs, at least one of which is not None."""
        raise NotImplementedError

    def gradients(self, dy: Tensor, xs: Optional, needed: Sequence[bool]) -> Optional:
        """Gradients with respect to the inputs; those that are not `needed` may be None."""
        return torch_gradients(self, dy, xs, needed, again=False)

    def second_gradients(
        self, changes: Optional, dy: Tensor, xs: Optional, needed: Sequence[bool]
    ) -> tuple[Tensor, Optional]:
        """Gradients of ``dy . tangent(changes, xs)`` with respect to dy, and to the inputs that are `needed`."""
        with torch.enable_grad():
            xs = [x if x is None else x.detach().requires_grad_(need) for x, need in zip(xs, needed, strict=True)]
            tangent = self.tangent(changes, xs)
            chosen = [x for x, need in zip(xs, needed, strict=True) if need and x is not None]
            if not tangent.requires_grad:
                return tangent, [None] * len(xs)
            found = iter(torch.autograd.grad(tangent, chosen, dy, allow_unused=True))
        return tangent.detach(), [
            next(found) if need and x is not None else None for x, need in zip(xs, needed, strict=True)
        ]


def apply_linearised(function: Linearised, flags: Recording, *xs: Tensor | None) -> Tensor:
    """The value, as a node of the autograd graph."""
    return _Forward.apply(function, flags, *xs)


def torch_gradients(function: Linearised, dy: Tensor, xs: Optional, needed: Sequence[bool], *, again: bool) -> Optional:
    """The gradients by autograd, from the function's own value; `again`: to be differentiated again."""
    with torch.enable_grad():
        if again:  # as tensors of their own: one input may depend on another, which is not this function's to follow
            xs = [x if x is None else x.view_as(x) for x in xs]
        else:
            xs = [x if x is None else x.detach().requires_grad_(need) for x, need in zip(xs, needed, strict=True)]
        chosen = [x for x, need in zip(xs, needed, strict=True) if need and x is not None]
        found = iter(torch.autograd.grad(function.value(*xs), chosen, dy, create_graph=again))
    return [next(found) if need and x is not None else None for x, need in zip(xs, needed, strict=True)]


class _Forward(torch.autograd.Function):
    """The function as one node; a backward pass that is recorded is one node too.

    It is a :class:`_Gradients`, or where the values of gradients are not used a :class:`_Transposed`.
    """

    @staticmethod
    def forward(ctx, function, flags, *xs):
        ctx.save_for_backward(*xs)
        ctx.function, ctx.flags = function, flags
        return function.value(*xs)

    @staticmethod
    def backward(ctx, dy):
        xs, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        if not torch.is_grad_enabled():
            return None, None, *ctx.function.gradients(dy, xs, needed)
        if not ctx.flags.recording:  # the model takes gradients itself
            return None, None, *torch_gradients(ctx.function, dy, xs, needed, again=True)
        if ctx.flags.values and not ctx.function.is_linear:
            return None, None, *_Gradients.apply(ctx.function, needed, dy, *xs)
        return None, None, *_Transposed.apply(ctx.function, needed, dy, *xs)


class _Gradients(torch.autograd.Function):
    """The gradients, recorded for another derivative. Inputs that are leaves are parameters: theirs are not used."""

    @staticmethod
    def forward(ctx, function, needed, dy, *xs):
        ctx.save_for_backward(dy, *xs)
        ctx.set_materialize_grads(False)
        ctx.function = function
        used = [need and x is not None and not x.is_leaf for x, need in zip(xs, needed, strict=True)]
        found = function.gradients(dy, xs, used) if any(used) else xs
        return tuple(
            gradient if use else zeros(dy, x.shape) if need and x is not None else None
            for gradient, x, use, need in zip(found, xs, used, needed, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, *changes):
        dy, *xs = ctx.saved_tensors
        if all(t is None for t in changes):
            return None, None, None, *(None for _ in xs)
        to_dy, to_xs = ctx.function.second_gradients(changes, dy, xs, ctx.needs_input_grad[3:])
        return None, None, to_dy, *to_xs


class _Transposed(torch.autograd.Function):
    """The transposed Jacobian times dy, recorded for its derivative with respect to dy; its value is not used."""

    @staticmethod
    def forward(ctx, function, needed, dy, *xs):
        ctx.save_for_backward(*xs)
        ctx.set_materialize_grads(False)
        ctx.function = function
        return tuple(None if x is None or not need else zeros(dy, x.shape) for x, need in zip(xs, needed, strict=True))

    @staticmethod
    def backward(ctx, *changes):
        xs = ctx.saved_tensors
        to_dy = None if all(t is None for t in changes) else ctx.function.tangent(changes, xs)
        return None, None, to_dy, *(None for _ in xs)


def zeros(like: Tensor, shape: torch.Size) -> Tensor:
    """Zeros that take no memory, in place of a value that is not used."""
    return like.new_zeros(()).expand(shape)
