"""Curvature of softmax regression in closed form: Hessian products, and LiSSA on them.

The mean cross-entropy of a linear head ``logits = h @ W.T`` has one Hessian, which is also its Gauss-Newton matrix
and does not depend on the labels. With ``u = h @ v.T`` and the softmax probabilities p, its product with v is
``s.T @ h / N`` where ``s = p * (u - (p * u).sum(-1))``: it depends on the weights only through p. Both functions take
these arguments:

    h: features, (N, F). For a bias, append a column of ones to ``h`` and the bias as last column to ``v``.
    logits_or_probs: logits or probabilities of the head for ``h``, (N, C); see ``from_logits``.
    v: one right-hand side (C, F), or K of them at once, (K, C, F).
    from_logits: True if ``logits_or_probs`` are logits, False if they are probabilities. None detects probabilities:
        no entry is below 0, and rows sum to 1 within 1e-3 (within the rounding error of bfloat16, in bfloat16).
        Detection reads the tensor, which synchronises on CUDA.

Tensors are float32, float64, bfloat16 or float16. Both functions compute in float64 if a tensor is float64, else in
float32, store u for one batch (its samples * K * C values), and are not differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnx.ops._call import call_past_autograd, register_fake
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops._not_differentiable import not_differentiable

__all__ = ["lissa_softmax_linear", "softmax_linear_hvp"]


def softmax_linear_hvp(h: Tensor, logits_or_probs: Tensor, v: Tensor, *, from_logits: bool | None = None) -> Tensor:
    """Hessian products of the mean cross-entropy of a linear head, with all right-hand sides at once.

    Args:
        h, logits_or_probs, v, from_logits: see the module's docstring.

    Returns:
        The products, in the shape and dtype of ``v``.

    Raises:
        TypeError: a tensor is not float32, float64, float16 or bfloat16.
        ValueError: shapes or devices do not match, or there are no samples.

    Example:
        >>> h, logits, v = torch.randn(10, 4), torch.randn(10, 3), torch.randn(3, 4)
        >>> u, p = h @ v.mT, logits.softmax(1)
        >>> product = (p * (u - (p * u).sum(1, keepdim=True))).mT @ h / 10
        >>> torch.allclose(softmax_linear_hvp(h, logits, v), product, atol=1e-5)
        True
    """
    probs = _probabilities("softmax_linear_hvp", logits_or_probs, from_logits)
    return call_past_autograd(torch.ops.unlearnx.softmax_linear_hvp, h, probs, v)


def lissa_softmax_linear(
    h: Tensor,
    logits_or_probs: Tensor,
    v: Tensor,
    *,
    damping: float,
    scale: float,
    batch_size: int | None = None,
    iterations: int,
    patience: int | None = None,
    order: Tensor | None = None,
    from_logits: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """LiSSA on a linear head, all iterations and right-hand sides in one call.

    Solves ``(H + damping * scale * I) x = v`` for every right-hand side, where H is the Hessian of the mean
    cross-entropy. It iterates ``y <- v + (1 - damping) y - H_b y / scale``, starting with ``y = v``, where H_b is the
    Hessian of one batch after the other; ``x = y / scale``. It converges if ``scale`` exceeds half the largest
    eigenvalue. A right-hand side whose update is not finite stops.

    Args:
        h, logits_or_probs, v, from_logits: see the module's docstring.
        damping: >= 0, without unit.
        scale: > 0, in units of the curvature.
        batch_size: samples per batch; None for all samples. Batches follow ``order`` and start over at its end; the
            last batch of each pass may be smaller.
        iterations: maximal number of iterations, at least 1.
        patience: each right-hand side stops by itself at the first update that is larger than its smallest one so far
            and comes at least ``patience - 1`` iterations after it, as published. None for no such stop.
        order: indices of the samples in the order of their use, int64 (N,); None for 0 ... N - 1.

    Returns:
        ``x`` in the shape and dtype of ``v``; and the history (iterations, K) in the dtype of the computation, or
        (iterations,) for a ``v`` of shape (C, F): the L1 norm of the change of each estimate y, NaN after it
        stopped. Nothing synchronises on CUDA, if ``from_logits`` is given.

    Raises:
        TypeError: a tensor is not float32, float64, float16 or bfloat16, or ``order`` is not int64.
        ValueError: shapes or devices do not match, there are no samples, or a number is out of range.

    Source: Agarwal, Bullins and Hazan, JMLR 2017; in this form and with this rule to stop Warnecke et al., "Machine
    Unlearning of Features and Labels", NDSS 2023.

    Example:
        >>> h, logits, v = torch.randn(100, 4), torch.randn(100, 3), torch.randn(2, 3, 4)  # two right-hand sides
        >>> x, history = lissa_softmax_linear(h, logits, v, damping=0.1, scale=2.0, iterations=200)
        >>> product = softmax_linear_hvp(h, logits, x) + 0.1 * 2.0 * x
        >>> torch.allclose(product, v, atol=1e-4), history.shape
        (True, torch.Size([200, 2]))
    """
    return call_past_autograd(
        torch.ops.unlearnx.lissa_softmax_linear,
        h,
        _probabilities("lissa_softmax_linear", logits_or_probs, from_logits),
        v,
        damping=damping,
        scale=scale,
        batch_size=batch_size,
        iterations=iterations,
        patience=patience,
        order=order,
    )


def _probabilities(op: str, t: Tensor, from_logits: bool | None) -> Tensor:
    if not isinstance(from_logits, bool | None):
        raise TypeError(f"{op}: from_logits is {from_logits!r}, expected True, False or None")
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: logits_or_probs is of type {type(t).__name__}, expected a tensor")
    if t.dim() != 2 or not t.is_floating_point():
        return t  # the op raises the error
    if from_logits is None:
        from_logits = not _are_probabilities(t)
    return t.softmax(1, dtype=compute_dtype(t)) if from_logits else t


def _are_probabilities(t: Tensor) -> bool:
    tolerance = max(1e-3, torch.finfo(t.dtype).eps)
    off = (t.sum(1, dtype=compute_dtype(t)) - 1).abs()
    return bool((t >= 0).all() & (off <= tolerance).all())


not_differentiable("softmax_linear_hvp", "lissa_softmax_linear")


@register_fake("softmax_linear_hvp")
def _(h, probs, v):
    return v.new_empty(v.shape)


@register_fake("lissa_softmax_linear")
def _(h, probs, v, *, damping, scale, batch_size=None, iterations, patience=None, order=None):
    wide = torch.float64 in (h.dtype, probs.dtype, v.dtype)
    history = v.new_empty((iterations, *v.shape[:-2]), dtype=torch.float64 if wide else torch.float32)
    return v.new_empty(v.shape), history
