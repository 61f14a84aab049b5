"""Rules: torch's functions for whose parameters per-sample gradients follow from inputs and output gradients.

A rule is called in place of its function, with the tape and the function's arguments. It returns the function's result,
watched by the tape, or NotImplemented for arguments it does not support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnx.curvature.attention import multi_head_attention
from unlearnx.curvature.contributions import (
    Contribution,
    ConvolutionWeight,
    EmbeddingWeight,
    LinearWeight,
    StoredGradients,
)
from unlearnx.curvature.recurrent import gru, gru_cell, lstm, lstm_cell, rnn_relu, rnn_tanh
from unlearnx.ops._dtypes import compute_dtype
from unlearnx.ops.lstm import lstm as lstm_op
from unlearnx.ops.scale_shift_grad import scale_shift_grad_diff

if TYPE_CHECKING:
    from unlearnx.curvature.tape import Tape

Parts = Iterable[tuple["Tensor | None", Contribution]]  # (parameter, its contribution)


def _position_sums(dy: Tensor) -> Tensor:
    """Sum (N, ..., O) over its positions to (N, O), in float32 or float64."""
    wide = compute_dtype(dy)
    return dy.to(wide) if dy.dim() == 2 else dy.sum(tuple(range(1, dy.dim() - 1)), dtype=wide)


def _linear(tape: Tape, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    axis = tape.sample_axis(input)
    if axis is None or input.dim() < 2:
        return NotImplemented
    output, x = F.linear(input, weight, bias), input.detach()

    def contributions(dy: Tensor) -> Parts:
        dy = dy.movedim(axis, 0)
        yield weight, LinearWeight(x.to(dy.dtype).movedim(axis, 0), dy)
        if bias is not None:
            yield bias, StoredGradients(_position_sums(dy))

    return tape.watch(output, (weight, bias), contributions)


def _convolution(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    sizes = convolution_sizes(weight, stride, padding, dilation)
    if sizes is None:
        return NotImplemented
    if tape.sample_axis(input) != 0 or input.dim() != weight.dim():
        return NotImplemented
    dims = weight.dim() - 2
    function = torch.conv1d if dims == 1 else torch.conv2d
    output, x = function(input, weight, bias, stride, padding, dilation, groups), input.detach()
    settings: dict[str, Any] = {name: tuple(size) for name, size in sizes.items()}
    if dims == 1:  # as an image with one row
        settings = {name: (0 if name == "padding" else 1, *size) for name, size in settings.items()}
    settings["groups"] = groups

    def contributions(dy: Tensor) -> Parts:
        yield weight, ConvolutionWeight(x.to(dy.dtype), dy, weight.shape, settings)
        if bias is not None:
            yield bias, StoredGradients(_position_sums(dy.movedim(1, -1)))

    return tape.watch(output, (weight, bias), contributions)


def convolution_sizes(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> dict[str, list[int]] | None:
    """Stride, padding and dilation, one number per dimension; None where the two sides are padded differently."""
    dims = weight.dim() - 2

    def sizes(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * dims if len(values) == 1 else values

    result = {"stride": sizes(stride), "padding": [0] * dims, "dilation": sizes(dilation)}
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(result["dilation"], weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):  # torch then pads the end by one more
            return None
        result["padding"] = [t // 2 for t in total]
    elif padding != "valid":
        result["padding"] = sizes(padding)
    return result


def _embedding(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    axis = tape.sample_axis(input)
    if axis is None:
        return NotImplemented
    output = F.embedding(input, weight, padding_idx)

    def contributions(dy: Tensor) -> Parts:
        yield weight, EmbeddingWeight(input.movedim(axis, 0), dy.movedim(axis, 0), len(weight), padding_idx)

    return tape.watch(output, (weight,), contributions)


def _scale_shift(
    tape: Tape,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    function: Callable[..., Tensor],
    dim: int,
    statistics: dict[str, Tensor] | None = None,
) -> Any:
    """Watch ``function(input, weight, bias)``, a normalisation followed by a scale and a shift along dimension `dim`.

    With parameters of several dimensions (layer norm), these are flattened to `dim` first. Called without parameters,
    the function normalises; where `statistics` are given, the kernel normalises instead as it reads the input.
    """
    axis = tape.sample_axis(input)
    if axis is None:
        return NotImplemented
    output, x = function(input, weight, bias), input.detach()
    output_dtype = output.dtype  # the closure must not hold the output, which holds the closure through its graph

    def contributions(dy: Tensor) -> Parts:
        normalised = x if statistics else function(x.to(output_dtype), None, None)  # in the dtype that autocast chose
        if dim < 0 and weight is not None and weight.dim() > 1:
            normalised, dy = normalised.flatten(-weight.dim()), dy.flatten(-weight.dim())
        wide = compute_dtype(dy)
        pair = (t.movedim(axis, 0).to(wide) for t in (normalised, dy))
        scale, shift = scale_shift_grad_diff(*pair, dim=dim, reduction="none", **(statistics or {}))
        for parameter, rows in ((weight, scale), (bias, shift)):
            if parameter is not None:
                yield parameter, StoredGradients(rows.view(-1, *parameter.shape))

    return tape.watch(output, (weight, bias), contributions)


def _batch_norm(
    tape: Tape,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None:
        return NotImplemented

    def function(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)

    statistics = {"mean": running_mean, "rstd": (running_var + eps).rsqrt()}
    return _scale_shift(tape, input, weight, bias, function, 1, statistics)


def _group_norm(
    tape: Tape,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    return _scale_shift(tape, input, weight, bias, lambda x, w, b: F.group_norm(x, num_groups, w, b, eps), 1)


def _layer_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    return _scale_shift(tape, input, weight, bias, lambda x, w, b: F.layer_norm(x, normalized_shape, w, b, eps), -1)


def _rms_norm(
    tape: Tape, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Any:
    return _scale_shift(tape, input, weight, None, lambda x, w, _: F.rms_norm(x, normalized_shape, w, eps), -1)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    F.embedding: _embedding,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.multi_head_attention_forward: multi_head_attention,
    torch._VF.lstm: lstm,
    lstm_op: lstm,
    torch._VF.gru: gru,
    torch._VF.rnn_tanh: rnn_tanh,
    torch._VF.rnn_relu: rnn_relu,
    torch._VF.lstm_cell: lstm_cell,
    torch._VF.gru_cell: gru_cell,
}
