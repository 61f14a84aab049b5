"""For every op, calls that exercise its kernels, with the results that are expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import unlearnx.ops
from unlearnx.selftest import references
from unlearnx.selftest.layers import GRADIENT_KINDS, Problem, conv2d, embedding, linear, scale_shift

ops: Any = unlearnx.ops  # Any: its functions are collected at import, so type checkers do not see them

# Runs an op with a dtype on a device; yields pairs (result, expected result), which may be on different devices.
Case = Callable[[torch.dtype, torch.device], Iterator[tuple[Tensor, Tensor]]]

LAYERS = [
    linear(40, outputs=9, inputs=17),
    linear(6, 12, outputs=130, inputs=67),
    conv2d(4, 20, (9, 9), 10, 3, channels_last=True, padding=1),
    conv2d(3, 6, (11, 13), 9, (3, 2), stride=(2, 3), padding=(2, 1), groups=3),
    conv2d(4, 9, (5, 6), 7, 1, stride=2),
    embedding(6, 9, tokens=11, features=33, padding_idx=2),
    scale_shift(5, 7, 6, dim=-1),
    scale_shift(4, 70, 5, 6, dim=1, statistics=True),
]

# Ops on lists of parameters: empty tensors, scalars, tensors of several CUDA blocks, and more tensors than one CUDA
# launch takes.
PARAMETER_SHAPES = [(1,), (129, 7), (2, 0, 3), (), (40_000,), (5, 3, 3, 3), *[(k,) for k in range(70)]]

SSD_SETTINGS: list[dict[str, Any]] = [
    {"alpha": 1.0, "lam": 1.0},
    {"alpha": 0.5, "lam": 0.25, "exponent": 2.0, "bound": 0.5},
]
LISSA_SETTINGS: dict[str, Any] = {"damping": 0.01, "scale": 3.0, "iterations": 12, "batch_size": 64}


def _layer(family: str, kind: str) -> Case:
    def case(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for problem in LAYERS:
            if problem.family == family:
                yield from _results_of_problem(problem, kind, dtype, device)

    return case


def _results_of_problem(
    problem: Problem, kind: str, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for paired in (False, True):
        tensors = problem.tensors(dtype, device, paired)
        for reduction in ("sum", "none") if kind == "diff" else ("sum",):
            yield from zip(*problem.results(kind, tensors, reduction), strict=True)


def _random_list(dtype: torch.dtype, low: float, high: float) -> list[Tensor]:
    return [torch.empty(shape).uniform_(low, high).to(dtype) for shape in PARAMETER_SHAPES]


def _copies_on(device: torch.device, *lists: list[Tensor]) -> Iterator[list[Tensor]]:
    """Copies of the lists on `device`, because the ops write to their arguments."""
    return ([t.to(device, copy=True) for t in tensors] for tensors in lists)


def _ssd_dampen(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    given = _random_list(dtype, -1, 1), _random_list(dtype, 0, 1), _random_list(dtype, 0, 2)
    for settings in SSD_SETTINGS:
        params, full, forget = _copies_on(device, *given)
        counts = ops.ssd_dampen_(params, full, forget, **settings)
        expected, expected_counts = references.ssd_dampen(*given, **settings)
        yield counts, expected_counts
        yield from zip(params, expected, strict=True)


def _fisher_mask(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    given = _random_list(dtype, 1, 2), _random_list(dtype, 0, 1), _random_list(dtype, 0, 1)
    params, forget, retain = _copies_on(device, *given)
    counts = ops.fisher_mask_(params, forget, retain, 0.3)
    expected, expected_counts = references.fisher_mask(*given, 0.3)
    yield counts, expected_counts
    yield from zip(params, expected, strict=True)


def _lissa_step(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    given = _random_list(dtype, -1, 1), _random_list(dtype, -1, 1), _random_list(dtype, -1, 1)
    h, v, hv = _copies_on(device, *given)
    norm = ops.lissa_step_(h, v, hv, 0.01, 3.0)
    expected, change = references.lissa_step(*given, 0.01, 3.0)
    yield norm, change
    yield from zip(h, expected, strict=True)


def _random_head(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, F), logits (N, C) and right-hand sides (K, C, F)."""
    n, features, classes, right_hand_sides = 301, 23, 10, 3
    h, logits = torch.randn(n, features) / math.sqrt(features), 2 * torch.randn(n, classes)
    return h.to(dtype), logits.to(dtype), torch.randn(right_hand_sides, classes, features).to(dtype)


def _softmax_linear_hvp(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    given = _random_head(dtype)
    product = ops.softmax_linear_hvp(*(t.to(device) for t in given), from_logits=True)
    yield product, references.softmax_linear_hvp(*given)


def _lissa_softmax_linear(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    given = _random_head(dtype)
    results = ops.lissa_softmax_linear(*(t.to(device) for t in given), **LISSA_SETTINGS, from_logits=True)
    yield from zip(results, references.lissa_softmax_linear(*given, **LISSA_SETTINGS), strict=True)


def _lstm(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs, gradients, and gradients of ``v . gradients``, which together run every LSTM kernel."""
    steps, samples, inputs, units = 9, 5, 7, 33
    shapes = [(steps, samples, inputs), *[(1, samples, units)] * 2, (4 * units, inputs), (4 * units, units)]
    given = [torch.randn(s).div(math.sqrt(s[-1])).to(dtype) for s in [*shapes, (4 * units,), (4 * units,)]]
    directions = [torch.randn_like(t) for t in (given[0].new_empty(steps, samples, units), *given)]

    def results(layer: Callable[..., Tensor], *, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        x, h, c, *weights = leaves = [t.to(device, dtype, copy=True).requires_grad_() for t in given]
        to_outputs, *v = (t.to(device, dtype) for t in directions)
        with torch.enable_grad():
            outputs = layer(x, (h, c), weights)
            gradients = torch.autograd.grad(outputs, leaves, to_outputs, create_graph=True)
            return [outputs, *gradients, *torch.autograd.grad(gradients, leaves, v)]

    got = results(lambda *args: ops.lstm(*args)[0], dtype=dtype, device=device)
    yield from zip(got, results(references.lstm, dtype=torch.float64, device=torch.device("cpu")), strict=True)


CASES: dict[str, Case] = {
    **{
        f"{family}_grad_{kind}": _layer(family, kind)
        for family in {p.family for p in LAYERS}
        for kind in GRADIENT_KINDS
    },
    "fisher_mask_": _fisher_mask,
    "lissa_softmax_linear": _lissa_softmax_linear,
    "lissa_step_": _lissa_step,
    "lstm": _lstm,
    "softmax_linear_hvp": _softmax_linear_hvp,
    "ssd_dampen_": _ssd_dampen,
}
