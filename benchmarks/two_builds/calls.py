"""One ordinary and one small call of every op, and the process that times them; it imports nothing of this checkout.

As a script it answers lines of standard input, a JSON list each: ["build", row, size] makes a call and gives its
seconds, ["time", calls] gives those of one of so many.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, randn

import unlearnx
from unlearnx import ops

Run = Callable[[], object]


class Row(NamedTuple):
    """An op with an ordinary call, whose sizes are said, and one so small that it shows what any call costs."""

    sizes: str
    ordinary: Callable[[], Run]
    small: Callable[[], Run]


def family(name: str, kind: str) -> Callable[..., Any]:
    """An op of a family of per-sample gradients; "diff, each" is "diff" that keeps the samples."""
    op = getattr(ops, f"{name}_grad_{kind.partition(',')[0]}")
    return partial(op, reduction="none") if kind.endswith("each") else op


def linear(kind: str, *shape: int, outputs: int) -> Run:
    v = {"v": randn(outputs, shape[-1])} if kind == "dot" else {}
    return partial(family("linear", kind), randn(*shape), randn(*shape[:-1], outputs), **v)


def conv2d(kind: str, n: int, channels: int, side: int) -> Run:
    images, gradients = randn(n, channels, side, side), randn(n, channels, side, side)
    v = {"v": randn(channels, channels, 3, 3)} if kind == "dot" else {}
    return partial(family("conv2d", kind), images, gradients, 3, padding=1, **v)


def embedding(kind: str, n: int, positions: int, tokens: int, features: int) -> Run:
    x, dy = torch.randint(tokens, (n, positions)), randn(n, positions, features)
    return partial(
        family("embedding", kind), x, dy, tokens, **({"v": randn(tokens, features)} if kind == "dot" else {})
    )


def scale_shift(kind: str, n: int, positions: int, channels: int) -> Run:
    v = {"v_scale": randn(channels), "v_shift": randn(channels)} if kind == "dot" else {}
    return partial(family("scale_shift", kind), randn(n, positions, channels), randn(n, positions, channels), **v)


def lists(shapes: list[tuple[int, ...]]) -> list[list[Tensor]]:
    return [[torch.rand(shape) for shape in shapes] for _ in range(3)]


def ssd_dampen(shapes: list[tuple[int, ...]]) -> Run:
    return partial(ops.ssd_dampen_, *lists(shapes), 10.0, 1e6)  # by a factor of one: repeated, values stay normal


def fisher_mask(shapes: list[tuple[int, ...]]) -> Run:
    return partial(ops.fisher_mask_, *lists(shapes), 0.02)


def lissa_step(shapes: list[tuple[int, ...]]) -> Run:
    return partial(ops.lissa_step_, *lists(shapes), 0.01, 10.0)


def softmax_linear(iterations: int, n: int, features: int, classes: int, sides: int) -> Run:
    h, probs, v = randn(n, features) / features**0.5, randn(n, classes).softmax(1), randn(sides, classes, features)
    if not iterations:
        return partial(ops.softmax_linear_hvp, h, probs, v, from_logits=False)
    loop = {"damping": 0.01, "scale": 1.0, "iterations": iterations}
    return partial(ops.lissa_softmax_linear, h, probs, v, **loop, from_logits=False)


def lstm(passes: int, steps: int, n: int, inputs: int, units: int) -> Run:
    """The layer; with its gradient; or with that gradient's own as well."""
    weights, x = torch.nn.LSTM(inputs, units)._flat_weights, randn(steps, n, inputs)
    v = [torch.randn_like(w) for w in weights]

    def run() -> object:
        if passes == 0:
            with torch.no_grad():
                return ops.lstm(x, None, weights)
        loss = ops.lstm(x, None, weights)[0].square().sum()
        gradients = torch.autograd.grad(loss, weights, create_graph=passes > 1)
        return torch.autograd.grad(gradients, weights, v) if passes > 1 else gradients

    return run


KINDS = ("diff", "diff, each", "sq", "sqnorm", "dot")
IN_PLACE = {"ssd_dampen_": ssd_dampen, "fisher_mask_": fisher_mask, "lissa_step_": lissa_step}
NETWORK = [(64, 64, 3, 3), (64,), (64,), (64,)] * 40
TWO = [(5_000_000,), (5_000_000,)]


def vectors(kind: str) -> Row:
    small = partial(linear, kind, 4, 8, outputs=8)
    if kind == "diff, each":
        return Row("128 samples, 512 x 256", partial(linear, kind, 128, 512, outputs=256), small)
    return Row("2,048 samples, 1,024 x 256", partial(linear, kind, 2048, 1024, outputs=256), small)


def rows() -> dict[str, Row]:
    """By their names."""
    found = {f"linear_grad_{kind}": vectors(kind) for kind in KINDS}
    for kind in KINDS:
        found |= {
            f"linear_grad_{kind}, sequences": Row(
                "64 samples, 32 positions, 256 x 256",
                partial(linear, kind, 64, 32, 256, outputs=256),
                partial(linear, kind, 4, 2, 8, outputs=8),
            ),
            f"conv2d_grad_{kind}": Row(
                "32 images, 16 x 16, 3 x 3, 32 to 32 channels",
                partial(conv2d, kind, 32, 32, 16),
                partial(conv2d, kind, 2, 2, 4),
            ),
            f"embedding_grad_{kind}": Row(
                "512 samples, 24 positions, 500 x 64" if kind != "diff, each" else "128 samples, the same",
                partial(embedding, kind, 512 if kind != "diff, each" else 128, 24, 500, 64),
                partial(embedding, kind, 4, 3, 5, 8),
            ),
            f"scale_shift_grad_{kind}": Row(
                "1,024 samples, 16 positions, 256 channels",
                partial(scale_shift, kind, 1024, 16, 256),
                partial(scale_shift, kind, 4, 2, 8),
            ),
        }
    for name, call in IN_PLACE.items():
        found |= {
            name: Row("two tensors, 10,000,000 values", partial(call, TWO), partial(call, [(8, 8)])),
            f"{name}, network": Row("160 tensors of a ResNet", partial(call, NETWORK), partial(call, [(8,)] * 160)),
        }
    head = 10_000, 512, 10, 32
    found["softmax_linear_hvp"] = Row(
        "10,000 samples, 512 x 10, 32 vectors",
        partial(softmax_linear, 0, *head),
        partial(softmax_linear, 0, 8, 8, 3, 1),
    )
    found["lissa_softmax_linear"] = Row(
        "the same, 5 iterations", partial(softmax_linear, 5, *head), partial(softmax_linear, 1, 8, 8, 3, 1)
    )
    for passes, what in enumerate(("", ", backward", ", twice backward")):
        found[f"lstm{what}"] = Row(
            "64 sequences, 24 steps, 64 inputs, 128 units",
            partial(lstm, passes, 24, 64, 64, 128),
            partial(lstm, passes, 2, 2, 4, 4),
        )
    return dict(sorted(found.items()))


def seconds(run: Run, calls: int) -> float:
    """Of one call."""
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - begin) / calls


def serve() -> None:
    """Answers as the module's docstring says; first, what was imported, and how it was built."""

    def answer(value: object) -> None:
        print(json.dumps(value), flush=True)

    answer([unlearnx.__file__, unlearnx.build_info()])
    known, run = rows(), None
    for line in sys.stdin:
        order, *given = json.loads(line)
        if order == "build":
            torch.manual_seed(0)
            row, size = given
            run = None  # its tensors go before new ones come
            run = getattr(known[row], size)()
            answer(min(seconds(run, 1) for _ in range(3)))
        elif run is not None:
            answer(seconds(run, *given))


if __name__ == "__main__":
    serve()
