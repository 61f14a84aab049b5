"""What the ops compute, in plain torch and float64: the references of the self-test and of the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = Sequence[Tensor]


def ssd_dampen(
    params: Tensors,
    importance_full: Tensors,
    importance_forget: Tensors,
    alpha: float,
    lam: float,
    exponent: float = 1.0,
    bound: float = 1.0,
) -> tuple[list[Tensor], Tensor]:
    """Dampened copies of the parameters, and the number of dampened entries of each."""
    results, counts = [], []
    for p, f, g in zip(params, importance_full, importance_forget, strict=True):
        p, f, g = p.double(), f.double(), g.double()
        selected = g > alpha * f
        factor = ((lam * f / g) ** exponent).clamp(max=bound)
        results.append(torch.where(selected, p * factor, p))
        counts.append(selected.sum())
    return results, torch.stack(counts)


def lissa_step(h: Tensors, v: Tensors, hv: Tensors, damping: float, scale: float) -> tuple[list[Tensor], Tensor]:
    """The estimate after the step, and the L1 norm of its change."""
    results = [b.double() + (1 - damping) * a.double() - c.double() / scale for a, b, c in zip(h, v, hv, strict=True)]
    return results, torch.stack([(r - a.double()).abs().sum() for r, a in zip(results, h, strict=True)]).sum()


def fisher_mask(params: Tensors, forget: Tensors, retain: Tensors, ratio: float) -> tuple[list[Tensor], Tensor]:
    """Masked copies of the parameters, in their dtypes, and the number of zeroed entries of each; by a stable sort."""
    values = fisher_mask_scores(params, forget, retain)
    order = np.argsort(-values, kind="stable")  # puts NaN last
    selected = min(int(ratio * values.size), np.count_nonzero(~np.isnan(values)))
    zeroed = np.zeros(values.size, dtype=bool)
    zeroed[order[:selected]] = True
    masks = torch.from_numpy(zeroed).split([p.numel() for p in params])
    masks = [m.reshape(p.shape).to(p.device) for m, p in zip(masks, params, strict=True)]
    expected = [p.masked_fill(m, 0) for p, m in zip(params, masks, strict=True)]
    return expected, torch.stack([m.sum() for m in masks])


def fisher_mask_scores(params: Tensors, forget: Tensors, retain: Tensors) -> np.ndarray:
    """``forget - retain`` of all entries in one array, in the precision that the op documents."""
    wide = any(t.dtype == torch.float64 for ts in (params, forget, retain) for t in ts)
    dtype = torch.float64 if wide else torch.float32
    parts = [(f.to(dtype) - r.to(dtype)).double().cpu().flatten() for f, r in zip(forget, retain, strict=True)]
    return torch.cat(parts).numpy()


def softmax_linear_hvp(h: Tensor, logits: Tensor, v: Tensor) -> Tensor:
    """Autograd twice on the mean cross-entropy; the labels are zeros, since the Hessian does not depend on them."""
    h, logits, v = (t.double() for t in (h, logits, v))
    weight = torch.zeros(logits.shape[1], h.shape[1], dtype=torch.float64, device=h.device, requires_grad=True)
    loss = F.cross_entropy(logits + h @ weight.T, torch.zeros(len(h), dtype=torch.long, device=h.device))
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    right_hand_sides = v.view(-1, *weight.shape)
    return torch.autograd.grad(gradient, weight, right_hand_sides, is_grads_batched=True)[0].view(v.shape)


def lissa_softmax_linear(
    h: Tensor,
    logits: Tensor,
    v: Tensor,
    *,
    damping: float,
    scale: float,
    batch_size: int | None = None,
    iterations: int,
    patience: int | None = None,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Solution and history of the published iteration; each right-hand side stops by itself."""
    order = torch.arange(len(h)) if order is None else order
    batches = order.split(batch_size or len(h))
    right_hand_sides = v.double().view(-1, *v.shape[-2:])
    y = right_hand_sides.clone()
    history = torch.full((iterations, len(right_hand_sides)), math.nan, dtype=torch.float64)
    count = len(right_hand_sides)
    smallest, since_smallest, active = [math.inf] * count, [0] * count, [True] * count
    for i in range(iterations):
        batch = batches[i % len(batches)]
        new = right_hand_sides + (1 - damping) * y - softmax_linear_hvp(h[batch], logits[batch], y) / scale
        for k in filter(active.__getitem__, range(count)):
            update = (new[k] - y[k]).abs().sum().item()
            y[k], history[i, k] = new[k], update
            if not math.isfinite(update) or (patience and update > smallest[k] and since_smallest[k] >= patience):
                active[k] = False
            elif update < smallest[k]:
                smallest[k], since_smallest[k] = update, 1
            since_smallest[k] += 1
    return (y / scale).view(v.shape), history if v.dim() == 3 else history[:, 0]


def lstm(x: Tensor, hx: Tensors, weights: Tensors) -> Tensor:
    """Outputs (T, N, H) of one layer in one direction, every step in plain torch, in the dtype of ``x``."""
    w_ih, w_hh, b_ih, b_hh = weights
    h, c, outputs = hx[0][0], hx[1][0], []
    for step in x:
        i, f, g, o = (step @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)
