"""Every kernel with every dtype at odd and misaligned sizes, with TF32 allowed and not: what no emulator shows.

    python -m benchmarks.gpu.smoke [cuda|cpu]     a line for each failure; exit status 1 where there is one

Real launches, tensor cores, torch's own products under its own switches, and the same bits when an op is called again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import unlearnx.ops
from benchmarks.gpu.precision import tf32
from unlearnx import selftest
from unlearnx.selftest import references
from unlearnx.selftest.layers import GRADIENT_KINDS, conv2d, embedding, linear, scale_shift

ops: Any = unlearnx.ops  # Any: its functions are collected at import

Results = Iterator[tuple[str, Tensor, Tensor]]  # what was called, its result, the expected one

LAYERS = [
    # Tiles of 128 x 128 and 16 or 32 positions a step: full, with edges, values one by one and 16 bytes at a time.
    linear(3, 1, outputs=128, inputs=128),
    linear(3, 17, outputs=136, inputs=264),
    linear(5, 33, outputs=128, inputs=130),
    linear(2, 300, outputs=257, inputs=72),
    linear(2, 64, outputs=8, inputs=24),
    linear(4, 70, outputs=300, inputs=16),
    linear(300, 3, outputs=64, inputs=64),
    linear(77, outputs=33, inputs=65),
    conv2d(2, 3, (14, 13), 64, 3, padding=1),
    conv2d(2, 16, (14, 13), 24, 3, padding=1, stride=2),
    conv2d(3, 32, (9, 11), 72, 3, channels_last=True, padding=1),
    conv2d(2, 32, (14, 13), 32, 3, padding=1, groups=32),
    conv2d(2, 16, (14, 13), 144, 3, padding=2, dilation=2),
    conv2d(2, 64, (7, 7), 256, 1),
    conv2d(2, 48, (14, 13), 48, (1, 5), groups=3),
    embedding(6, 99, tokens=31, features=129, padding_idx=2),
    embedding(300, tokens=1001, features=7),
    scale_shift(33, 65, 130, dim=-1),
    scale_shift(6, 70, 15, 17, dim=1, statistics=True),
]
LIST_LENGTHS = (1, 63, 64, 65, 128, 192)  # around the 64 tensors of one launch
HEADS = [(301, 23, 10, 3), (130, 65, 3, 40), (67, 130, 1000, 1)]  # samples, features, classes, right-hand sides
SEQUENCES = [(1, 3, 5, 7), (9, 5, 7, 33), (4, 130, 17, 64)]  # steps, samples, inputs, units


def shifted(t: Tensor, values: int) -> Tensor:
    """A copy with the same strides that begins `values` values into its memory."""
    base = t.new_empty(t.numel() + values)
    return base.as_strided(t.shape, t.stride(), values).copy_(t)


def layers(dtype: torch.dtype, device: str, offset: int) -> Results:
    for problem, paired in itertools.product(LAYERS, (False, True)):
        tensors = problem.tensors(dtype, device, paired=paired)
        tensors = tuple(t if t is None else shifted(t, offset) for t in tensors)
        for kind in (*GRADIENT_KINDS, "rows"):
            reduction = "none" if kind == "rows" else "sum"
            shapes = " ".join(str(list(t.shape)) for t in tensors[:2])
            name = f"{problem.family}_grad_{kind} of {shapes}{', paired' if paired else ''}"
            for got, expected in zip(*problem.results(kind.replace("rows", "diff"), tensors, reduction), strict=True):
                yield name, got, expected


def lists(dtype: torch.dtype, device: str, offset: int) -> Results:
    calls: dict[str, tuple[float, ...]] = {"ssd_dampen": (1.0, 0.5), "fisher_mask": (0.3,), "lissa_step": (0.01, 3.0)}
    for (name, arguments), n in itertools.product(calls.items(), LIST_LENGTHS):
        shapes = [(0,), *[(k % 40 + 1, 3) for k in range(n - 1)], (8191,), (0,)]
        given = [[torch.rand(s).to(dtype) for s in shapes] for _ in range(3)]
        written, *read = ([shifted(t.to(device), offset) for t in ts] for ts in given)
        result = getattr(ops, f"{name}_")(written, *read, *arguments)
        changed, returned = getattr(references, name)(*given, *arguments)
        yield f"{name}_ of {n} tensors, returned", result, returned
        expected = torch.cat([t.double().flatten() for t in changed])
        yield f"{name}_ of {n} tensors", torch.cat([t.flatten() for t in written]), expected


def heads(dtype: torch.dtype, device: str, offset: int) -> Results:
    for samples, features, classes, sides in HEADS:
        given = [torch.randn(samples, features) / math.sqrt(features), 2 * torch.randn(samples, classes)]
        given = [t.to(dtype) for t in (*given, torch.randn(sides, classes, features))]
        h, logits, v = (shifted(t.to(device), offset) for t in given)
        size = f"{samples} x {features}, {classes} classes, {sides} sides"
        product = ops.softmax_linear_hvp(h, logits, v, from_logits=True)
        yield f"softmax_linear_hvp {size}", product, references.softmax_linear_hvp(*given)
        run: dict[str, Any] = {"damping": 0.01, "scale": 3.0, "iterations": 8, "batch_size": 64}
        found = ops.lissa_softmax_linear(h, logits, v, **run, from_logits=True)
        for got, expected in zip(found, references.lissa_softmax_linear(*given, **run), strict=True):
            yield f"lissa_softmax_linear {size}", got, expected


def sequences(dtype: torch.dtype, device: str, offset: int) -> Results:
    """Outputs, gradients and gradients of gradients, which run every LSTM kernel."""
    for steps, samples, inputs, units in SEQUENCES:
        shapes = [(steps, samples, inputs), *[(1, samples, units)] * 2, (4 * units, inputs), (4 * units, units)]
        given = [torch.randn(s).div(math.sqrt(s[-1])).to(dtype) for s in [*shapes, (4 * units,), (4 * units,)]]
        directions = [torch.randn_like(t) for t in (given[0].new_empty(steps, samples, units), *given)]

        def results(
            layer: Callable[..., Tensor], place: Callable[[Tensor], Tensor], given=given, directions=directions
        ):
            x, h, c, *weights = leaves = [place(t).requires_grad_() for t in given]
            to_outputs, *v = map(place, directions)
            outputs = layer(x, (h, c), weights)
            gradients = torch.autograd.grad(outputs, leaves, to_outputs, create_graph=True)
            return [outputs, *gradients, *torch.autograd.grad(gradients, leaves, v)]

        got = results(lambda *args: ops.lstm(*args)[0], lambda t: shifted(t.to(device), offset))
        expected = results(references.lstm, lambda t: t.double().clone())
        for i, pair in enumerate(zip(got, expected, strict=True)):
            yield f"lstm of {steps} x {samples} x {inputs}, {units} units, result {i}", *pair


def repeated(dtype: torch.dtype, device: str, offset: int) -> Results:
    """The same call again: our kernels add in an order of their own choice, whatever block ends first."""
    for problem in LAYERS:
        if problem.family == "embedding":
            continue  # torch's index_add_ adds in any order
        x, dy, *_, weight = problem.tensors(dtype, device)
        arguments = problem.arguments(shifted(x, offset), shifted(dy, offset), None, None)
        settings = {k: v.to(x) if torch.is_tensor(v) else v for k, v in problem.settings.items()}
        for kind, more in (("sq", {"weight": weight}), ("sqnorm", {})):
            first, second = (problem.op(kind)(*arguments, **settings, **more) for _ in range(2))
            for one, two in zip(*((r if isinstance(r, tuple) else (r,)) for r in (first, second)), strict=True):
                same = torch.tensor(float(torch.equal(one, two)))
                yield f"{problem.family}_grad_{kind} of {list(x.shape)}, called again", same, torch.ones(())


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Distance from the expected result, divided by its norm; NaN where only one of them has NaN."""
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    if got.shape != expected.shape or not torch.equal(got.isnan(), expected.isnan()):
        return math.nan
    difference = (got - expected).nan_to_num().norm().item()
    return difference / (expected.nan_to_num().norm().item() or 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device", nargs="?", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    torch.manual_seed(0)
    count, failures = 0, 0
    for kernels, dtype in itertools.product((layers, lists, heads, sequences, repeated), selftest.DTYPES):
        begin, worst = time.perf_counter(), 0.0
        for offset, allowed in itertools.product((0, 1), (True, False) if dtype == torch.float32 else (True,)):
            where = f"{str(dtype)[6:]}, {'misaligned' if offset else 'aligned'}, TF32 {'on' if allowed else 'off'}"
            with tf32(allowed):
                results = list(kernels(dtype, device, offset))
            for name, got, expected in results:
                error, limit = relative_error(got, expected), selftest.MAX_RELATIVE_ERROR[got.dtype]
                count, worst = count + 1, max(worst, error)
                if not error <= limit:
                    failures += 1
                    print(f"FAILED {name} ({where}): error {error:.1e}, expected at most {limit:.0e}", flush=True)
        seconds = time.perf_counter() - begin
        print(f"{kernels.__name__} {str(dtype)[6:]}: largest error {worst:.1e}, {seconds:.1f} s", flush=True)
    print(f"{count} results, {failures} failures", flush=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
