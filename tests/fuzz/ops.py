"""Random calls of the ops against plain float64, and hostile ones: ``python -m tests.fuzz.ops SEED CALLS``."""

from __future__ import annotations

import json
import random
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import unlearnx.ops as ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HUGE = [2**62, 2**62 + 1, 2**63 - 1, -(2**62), 2**31, 2**33]
OURS = (TypeError, ValueError, IndexError, NotImplementedError)
SCHEMA = re.compile("Expected a value of type|Unable to cast|Could not run|missing value|expected at most|[Oo]verflow")
WRONG_TYPE = re.compile("expected (a tensor|an integer|a number|a string|True)")
MANY = 2**24  # entries of a tensor that no reference is asked about
MEMORY = 12 * 2**30  # bytes of address space of a process that calls
Arguments = dict[str, Any]


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]


class Draw:
    """Random tensors in random places of memory."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        torch.manual_seed(seed)

    def size(self, most: int = 6, least: int = 0) -> int:
        if most == least:
            return least
        return self.random.choice([least, 1, 1, 2, 3, most, self.random.randint(least, most)])

    def laid_out(self, t: Tensor) -> Tensor:
        """The same values with other strides, offsets, or expanded."""
        kind = self.random.randrange(6)
        if kind == 0 and t.dim():
            order = list(range(t.dim()))
            self.random.shuffle(order)
            back = [order.index(d) for d in range(t.dim())]
            return t.permute(order).contiguous().permute(back)
        if kind == 1 and t.dim():
            d = self.random.randrange(t.dim())
            step, offset = self.random.randint(1, 3), self.random.randint(0, 2)
            sizes = list(t.shape)
            sizes[d] = offset + step * sizes[d] + 1
            base = torch.full(sizes, 77.0).to(t.dtype)
            view = base.narrow(d, offset, step * t.shape[d]).unfold(d, 1, step)[..., 0] if t.shape[d] else base
            return view.copy_(t) if view.shape == t.shape else t
        if kind == 2:
            base = torch.zeros(t.numel() + 3, dtype=t.dtype)
            return base[3:].view(t.shape).copy_(t)
        if kind == 3 and t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
        return t

    def tensor(self, *shape: int, dtype: torch.dtype) -> Tensor:
        t = torch.randn(*shape, dtype=torch.float64).to(dtype)
        if shape and self.random.random() < 0.1:  # one value for a whole dimension
            d = self.random.randrange(len(shape))
            if shape[d]:
                return t.narrow(d, 0, 1).expand(shape)
        return self.laid_out(t)


def maybe(draw: Draw, make: Callable[[], Any], chance: float = 0.4) -> Any:
    return make() if draw.random.random() < chance else None


def rows_of(x: Tensor, dy: Tensor) -> Tensor:
    return torch.einsum("nto,nti->noi", positions(dy.double()), positions(x.double()))


def positions(t: Tensor) -> Tensor:
    """(N, ..., C) as (N, T, C)."""
    return t[:, None] if t.dim() == 2 else t.flatten(1, -2)


def reduced(op: str, d: Tensor, a: Arguments) -> Any:
    """What an op of a layer's family makes of every sample's difference."""
    w = a.get("weight")
    w = torch.ones(len(d), dtype=torch.float64) if w is None else w.double()
    shaped = w.view(-1, *[1] * (d.dim() - 1))
    if op.endswith("_diff"):
        return shaped * d if a.get("reduction") == "none" else (shaped * d).sum(0)
    if op.endswith("_sq"):
        return (shaped * d.square()).sum(0)
    if op.endswith("_sqnorm"):
        return d.flatten(1).square().sum(1)
    return (d * a["v"].double()).flatten(1).sum(1)


def common(draw: Draw, op: str, n: int, dtype: torch.dtype) -> Arguments:
    a: Arguments = {}
    if op.endswith(("_diff", "_sq")):
        a["weight"] = maybe(draw, lambda: draw.tensor(n, dtype=draw.random.choice(DTYPES)))
    if op.endswith("_diff"):
        a["reduction"] = draw.random.choice(["sum", "none"])
    return a


def pairs(draw: Draw, x: Tensor, dy: Tensor, again: Callable[[], tuple[Tensor, Tensor]]) -> Arguments:
    a: Arguments = {"x": x, "dy": dy}
    if draw.random.random() < 0.5:
        a["x_new"], a["dy_new"] = again()
    return a


def linear(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    dtype, n, i, o = draw.random.choice(DTYPES), draw.size(9), draw.size(40), draw.size(40)
    middle = [draw.size(5, 1) for _ in range(draw.random.randrange(3))]

    def make() -> tuple[Tensor, Tensor]:
        return draw.tensor(n, *middle, i, dtype=dtype), draw.tensor(n, *middle, o, dtype=dtype)

    a = {**pairs(draw, *make(), make), **common(draw, op, n, dtype)}
    if op.endswith("_dot"):
        a["v"] = draw.tensor(o, i, dtype=dtype)

    def reference(a: Arguments) -> Any:
        d = rows_of(a["x"], a["dy"])
        return reduced(op, rows_of(a["x_new"], a["dy_new"]) - d if a.get("x_new") is not None else d, a)

    return a, reference


def conv(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    dtype, n, groups = draw.random.choice(DTYPES), draw.size(5), draw.size(3, 1)
    c, o = groups * draw.size(6, 1), groups * draw.size(6, 1)
    kernel, stride, padding, dilation = (
        (draw.size(most, least), draw.size(most, least)) for most, least in ((3, 1), (3, 1), (2, 0), (2, 1))
    )
    size = [max(1, dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d]) + draw.size(5) for d in (0, 1)]
    out = [(size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]

    def make() -> tuple[Tensor, Tensor]:
        return draw.tensor(n, c, *size, dtype=dtype), draw.tensor(n, o, *out, dtype=dtype)

    a = {**pairs(draw, *make(), make), **common(draw, op, n, dtype)}
    a |= {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if op.endswith("_dot"):
        a["v"] = draw.tensor(o, c // groups, *kernel, dtype=dtype)

    def each(x: Tensor, dy: Tensor, a: Arguments) -> Tensor:
        kh, kw = a["kernel_size"]
        g = a["groups"]
        cut = {k: a[k] for k in ("stride", "padding", "dilation")}
        columns = F.unfold(x.double(), a["kernel_size"], **cut) if len(x) else x.new_zeros(0, x.shape[1] * kh * kw, 1)
        columns = columns.double().unflatten(1, (g, -1))
        rows = dy.double().flatten(2).unflatten(1, (g, -1))
        if not len(x):
            return torch.zeros(0, dy.shape[1], x.shape[1] // g, kh, kw, dtype=torch.float64)
        return torch.einsum("ngop,ngcp->ngoc", rows, columns).reshape(len(x), -1, x.shape[1] // g, kh, kw)

    def reference(a: Arguments) -> Any:
        d = each(a["x"], a["dy"], a)
        return reduced(op, each(a["x_new"], a["dy_new"], a) - d if a.get("x_new") is not None else d, a)

    return a, reference


def embedding(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    dtype, n, d, v = draw.random.choice(DTYPES), draw.size(5), draw.size(6), draw.size(7, 1)
    middle = [draw.size(5, 1) for _ in range(draw.random.randrange(3))]
    whole = draw.random.choice([torch.int64, torch.int32])

    def make() -> tuple[Tensor, Tensor]:
        return draw.laid_out(torch.randint(v, (n, *middle)).to(whole)), draw.tensor(n, *middle, d, dtype=dtype)

    a = {**pairs(draw, *make(), make), **common(draw, op, n, dtype), "num_embeddings": v}
    a["padding_idx"] = maybe(draw, lambda: draw.random.randrange(-v, v))
    if op.endswith("_dot"):
        a["v"] = draw.tensor(v, d, dtype=dtype)

    def each(x: Tensor, dy: Tensor, a: Arguments) -> Tensor:
        tokens = x.long().flatten(1) if x.dim() > 1 else x.long()[:, None]
        one_hot = (tokens[..., None] == torch.arange(a["num_embeddings"])).double()
        if a["padding_idx"] is not None:
            one_hot[..., a["padding_idx"]] = 0
        return torch.einsum("ntv,ntd->nvd", one_hot, positions(dy.double()))

    def reference(a: Arguments) -> Any:
        g = each(a["x"], a["dy"], a)
        return reduced(op, each(a["x_new"], a["dy_new"], a) - g if a.get("x_new") is not None else g, a)

    return a, reference


def scale_shift(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    dtype, n = draw.random.choice(DTYPES), draw.size(5)
    shape = [n, *[draw.size(6, 1) for _ in range(draw.random.randint(1, 4))]]
    dim = draw.random.choice([d for d in range(-len(shape) + 1, len(shape)) if d % len(shape)])
    c = shape[dim]

    def make() -> tuple[Tensor, Tensor]:
        return draw.tensor(*shape, dtype=dtype), draw.tensor(*shape, dtype=dtype)

    a = {**pairs(draw, *make(), make), **common(draw, op, n, dtype), "dim": dim}
    if draw.random.random() < 0.5:
        a["mean"], a["rstd"] = draw.tensor(c, dtype=dtype), draw.tensor(c, dtype=dtype)
    if op.endswith("_dot"):
        a["v_scale"], a["v_shift"] = draw.tensor(c, dtype=dtype), draw.tensor(c, dtype=dtype)

    def each(x: Tensor, dy: Tensor, a: Arguments) -> tuple[Tensor, Tensor]:
        x, dy = (t.double().movedim(a["dim"], -1) for t in (x, dy))
        if a.get("mean") is not None:
            x = (x - a["mean"].double()) * a["rstd"].double()
        over = list(range(1, x.dim() - 1))
        return ((dy * x).sum(over), dy.sum(over)) if over else (dy * x, dy)

    def reference(a: Arguments) -> Any:
        found = each(a["x"], a["dy"], a)
        if a.get("x_new") is not None:
            found = tuple(new - old for new, old in zip(each(a["x_new"], a["dy_new"], a), found, strict=True))
        return tuple(
            reduced(op, d, {**a, "v": v}) for d, v in zip(found, (a.get("v_scale"), a.get("v_shift")), strict=True)
        )

    return a, reference


def lists(draw: Draw, names: list[str], *, positive: bool = False) -> dict[str, list[Tensor]]:
    shapes = [[draw.size(9) for _ in range(draw.random.randrange(4))] for _ in range(draw.size(5))]
    if draw.random.random() < 0.03:
        shapes.append([40_000])  # longer than a chunk

    def one(shape: list[int], written: bool) -> Tensor:
        t = torch.randn(shape, dtype=torch.float64).to(draw.random.choice(DTYPES))
        return draw.laid_out(t.abs() + 0.1 if positive and not written else t)

    return {name: [one(shape, name == names[0]) for shape in shapes] for name in names}


def ssd(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    names = ["params", "importance_full", "importance_forget"]
    a: Arguments = lists(draw, names, positive=True)
    a |= {"alpha": draw.random.choice([0.0, 0.5, 1.0, 3.0]), "lam": draw.random.choice([0.0, 0.5, 1.0])}
    a |= {"exponent": draw.random.choice([0.0, 0.5, 1.0, 2.0]), "bound": draw.random.choice([0.0, 0.5, 1.0, 2.0])}

    def reference(a: Arguments) -> Any:
        counts = []
        for p, full, forget in zip(*(a[name] for name in names), strict=True):
            wide = torch.float64 in (p.dtype, full.dtype, forget.dtype)
            compute = torch.float64 if wide else torch.float32
            chosen = forget.to(compute) > a["alpha"] * full.to(compute)
            factor = (a["lam"] * full.double() / forget.double()) ** a["exponent"]
            counts.append(int(chosen.sum()))
            p.copy_(torch.where(chosen, p.double() * factor.clamp(max=a["bound"]), p.double()))
        return torch.tensor(counts, dtype=torch.int64)

    return a, reference


def mask(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    names = ["params", "importance_forget", "importance_retain"]
    a: Arguments = {**lists(draw, names), "ratio": draw.random.choice([0.0, 0.1, 0.5, 1.0])}

    def reference(a: Arguments) -> Any:
        wide = any(t.dtype == torch.float64 for name in names for t in a[name])
        compute = torch.float64 if wide else torch.float32
        triples = zip(*(a[name] for name in names), strict=True)
        scores = [(f.to(compute) - r.to(compute)).flatten() for _, f, r in triples]
        total = torch.cat(scores) if scores else torch.zeros(0)
        chosen = torch.zeros(len(total), dtype=torch.bool)
        chosen[total.argsort(descending=True, stable=True)[: int(a["ratio"] * len(total))]] = True
        counts = []
        for p, part in zip(a["params"], chosen.split([t.numel() for t in a["params"]]) if scores else [], strict=True):
            p.copy_(p.clone().masked_fill(part.view(p.shape), 0))
            counts.append(int(part.sum()))
        return torch.tensor(counts, dtype=torch.int64)

    return a, reference


def lissa(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    a: Arguments = {**lists(draw, ["h", "v", "hv"]), "damping": draw.random.choice([0.0, 0.1, 1.0])}
    a["scale"] = draw.random.choice([0.5, 1.0, 10.0])

    def reference(a: Arguments) -> Any:
        change = torch.zeros((), dtype=torch.float64)
        for h, v, hv in zip(a["h"], a["v"], a["hv"], strict=True):
            following = v.double() + (1 - float(a["damping"])) * h.double() - hv.double() / float(a["scale"])
            change += (following - h.double()).abs().sum()
            h.copy_(following)
        return change

    return a, reference


def softmax(draw: Draw, op: str) -> tuple[Arguments, Callable[[Arguments], Any]]:
    dtype, n, f, c = draw.random.choice(DTYPES[:2]), draw.size(9, 1), draw.size(9, 1), draw.size(5, 1)
    sides = maybe(draw, lambda: draw.size(4, 1))
    shape = (c, f) if sides is None else (sides, c, f)
    probs = draw.laid_out(torch.randn(n, c, dtype=torch.float64).softmax(1).to(dtype))
    a: Arguments = {
        "h": draw.tensor(n, f, dtype=dtype),
        "logits_or_probs": probs,
        "v": draw.tensor(*shape, dtype=dtype),
    }
    a["from_logits"] = False
    if op.startswith("lissa"):
        a |= {"damping": 0.1, "scale": 50.0, "iterations": draw.size(6, 1)}
        a["batch_size"] = maybe(draw, lambda: draw.size(9, 1))
        a["order"] = maybe(draw, lambda: torch.randperm(n))

    def product(h: Tensor, p: Tensor, v: Tensor) -> Tensor:
        u = torch.einsum("nf,kcf->nkc", h, v)
        s = p[:, None] * (u - (p[:, None] * u).sum(-1, keepdim=True))
        return torch.einsum("nkc,nf->kcf", s, h) / len(h)

    def reference(a: Arguments) -> Any:
        h, p = a["h"].double(), a["logits_or_probs"].double()
        v = a["v"].double() if a["v"].dim() == 3 else a["v"].double()[None]
        if not op.startswith("lissa"):
            return product(h, p, v).view(a["v"].shape)
        if a["order"] is not None:
            h, p = h[a["order"]], p[a["order"]]
        size = min(a["batch_size"] or len(h), len(h))
        y, history, starts = v.clone(), [], list(range(0, len(h), size))
        if a["iterations"] > 1000:
            raise ValueError("not in a test's time")
        for k in range(a["iterations"]):
            part = slice(starts[k % len(starts)], starts[k % len(starts)] + size)
            following = v + (1 - a["damping"]) * y - product(h[part], p[part], y) / a["scale"]
            history.append((following - y).abs().sum((1, 2)))
            y = following
        steps = torch.stack(history)
        return (y / a["scale"]).view(a["v"].shape), steps if a["v"].dim() == 3 else steps[:, 0]

    return a, reference


FAMILIES: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "linear": (linear, [f"linear_grad_{k}" for k in ("diff", "sq", "sqnorm", "dot")]),
    "conv": (conv, [f"conv2d_grad_{k}" for k in ("diff", "sq", "sqnorm", "dot")]),
    "embedding": (embedding, [f"embedding_grad_{k}" for k in ("diff", "sq", "sqnorm", "dot")]),
    "scale_shift": (scale_shift, [f"scale_shift_grad_{k}" for k in ("diff", "sq", "sqnorm", "dot")]),
    "lists": (ssd, ["ssd_dampen_"]),
    "mask": (mask, ["fisher_mask_"]),
    "lissa": (lissa, ["lissa_step_"]),
    "softmax": (softmax, ["softmax_linear_hvp", "lissa_softmax_linear"]),
}
SAME_ARGUMENTS = [op for _, names in FAMILIES.values() for op in names if "softmax" not in op]
CASES = [(family, op) for family, names in FAMILIES.values() for op in names]


def hostile(draw: Draw, a: Arguments) -> str:
    """Spoil one argument; returns its name."""
    name = draw.random.choice([key for key, value in a.items() if value is not None])
    value = a[name]
    if isinstance(value, list):
        a[name] = spoiled_list(draw, a, name)
    elif isinstance(value, Tensor):
        a[name] = spoiled_tensor(draw, value)
    elif isinstance(value, str):
        a[name] = draw.random.choice(["mean", "", 3, None, value + "\0"])
    elif isinstance(value, tuple):
        huge = draw.random.choice(HUGE)
        wrong = [[], (), (1,), [1, 1, 1], (0, 0), (-1, 1), (huge, 1), [huge] * 2, "a", None, 1.5]
        a[name] = draw.random.choice(wrong)
    else:
        huge = 2**63 - 1 if name == "iterations" else draw.random.choice(HUGE)  # fewer would be done, in hours
        a[name] = draw.random.choice([-1, float("nan"), float("inf"), -0.5, "1", [], huge, 2.0**70])
    return name


def spoiled_tensor(draw: Draw, t: Tensor) -> Any:
    def grown() -> Tensor:
        if not t.dim():
            return t[None]
        d = draw.random.randrange(t.dim())
        return torch.cat([t, t.new_zeros([1 if k == d else s for k, s in enumerate(t.shape)])], d)

    kinds = [
        lambda: t.to("meta"),
        lambda: t.to(torch.complex64),
        lambda: t.to(torch.int16),
        lambda: t.bool(),
        lambda: t.to_sparse() if t.dim() and t.numel() else t.to("meta"),
        lambda: t[None],
        lambda: t.flatten(),
        grown,
        lambda: t.to(draw.random.choice(DTYPES)),
        lambda: "tensor",
        lambda: None,
        lambda: 1.0,
        lambda: t.tolist(),
        lambda: torch.zeros(()),
        lambda: t + 10**6 if not t.is_floating_point() else t.to("meta"),
        lambda: torch.zeros(1, dtype=t.dtype).expand(2**31, 2**31 - 1),
    ]
    return draw.random.choice(kinds)()


def spoiled_list(draw: Draw, a: Arguments, name: str) -> Any:
    ts = list(a[name])
    others = [t for key, value in a.items() if isinstance(value, list) and key != name for t in value]
    k = draw.random.randrange(len(ts)) if ts else None
    kind = draw.random.randrange(7)
    if k is None or kind == 0:
        return draw.random.choice([[*ts, torch.zeros(2)], None, "list", torch.zeros(3, 2), 3, [None]])
    if kind == 1:
        return ts[:k] + ts[k + 1 :]
    if kind == 2:
        return [*ts, ts[k]]
    if kind == 3 and others:
        ts[k] = draw.random.choice(others)  # shares memory, maybe at its own place
    elif kind == 4 and ts[k].numel() > 1:
        base = torch.randn(2 * ts[k].numel() + 1, dtype=torch.float64).to(ts[k].dtype)
        first = next(key for key, value in a.items() if isinstance(value, list))
        ts[k] = base[1 : ts[k].numel() + 1].view(ts[k].shape)
        if first != name and k < len(a[first]):  # partly overlapping with what is written
            a[first] = [base[: ts[k].numel()].view(ts[k].shape) if j == k else t for j, t in enumerate(a[first])]
    elif kind == 5:
        ts[k] = torch.zeros((), dtype=ts[k].dtype).expand(ts[k].shape)
    else:
        ts[k] = spoiled_tensor(draw, ts[k])
    return ts


def copied(value: Any) -> Any:
    """Arguments with memory of their own for the reference; expanded ones as they are."""
    if isinstance(value, list):
        return [copied(v) for v in value]
    small = isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() <= MANY
    return value.clone() if small else value


def compare(got: Any, expected: Any, dtype: torch.dtype, scale: float) -> str | None:
    if isinstance(expected, (tuple, list)):
        return next((w for g, e in zip(got, expected, strict=True) if (w := compare(g, e, dtype, scale))), None)
    if got.shape != expected.shape:
        return f"shape {list(got.shape)}, expected {list(expected.shape)}"
    if not expected.is_floating_point():
        return None if torch.equal(got, expected) else f"{got.tolist()}, expected {expected.tolist()}"
    worst = max(tolerance(dtype), tolerance(got.dtype))
    overflows = expected.isfinite() & expected.to(got.dtype).isinf()
    if overflows.any():
        return "finite where it overflows" if bool(got[overflows].isfinite().any()) else None
    same = (got == expected) | (got.isnan() & expected.isnan())  # infinities too
    error = (got.double() - expected.double()).abs().masked_fill(same, 0)
    size = max(scale, float(expected.double().abs().nan_to_num(0.0, torch.inf).max()) if expected.numel() else 0.0)
    if expected.numel() and not bool((error <= worst * (1 + size)).all()):
        return f"off by {float(error.max()):.3g} in {size:.3g}"
    return None


def narrowest(value: Any) -> torch.dtype:
    found = [t.dtype for t in flat(value) if isinstance(t, Tensor) and t.dtype in DTYPES]
    order = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    return max(found, key=order.index, default=torch.float64)


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [t for v in value.values() for t in flat(v)]
    return [t for v in value for t in flat(v)] if isinstance(value, (list, tuple)) else [value]


def one(draw: Draw, counts: Counter[str]) -> str | None:
    family, op = draw.random.choice(CASES)
    a, reference = family(draw, op)
    spoiled = hostile(draw, a) if draw.random.random() < 0.5 else None
    raw = draw.random.random() < 0.3 and op in SAME_ARGUMENTS
    label = f"{'torch.ops.' * raw}{op} {spoiled or ''} {shown(a if spoiled is None else {spoiled: a[spoiled]})}"
    print(json.dumps(label[:300]), flush=True)
    tensors = [t for t in flat(a) if isinstance(t, Tensor)]
    expected, reason, wide = None, None, {key: copied(value) for key, value in a.items()}
    try:
        if any(t.numel() > MANY for t in tensors):
            raise MemoryError
        expected = reference(wide)
    except Exception as error:  # not a call that has an answer
        reason = error
    try:
        got = getattr(torch.ops.unlearnx if raw else ops, op)(**a)
    except Exception as error:
        return judged(op, raw, a, spoiled, error, label, counts)
    if any(t.device.type == "meta" for t in tensors):
        mixed = any(t.device.type != "meta" for t in tensors)
        return f"{label}: tensors on two devices were accepted" if mixed else None
    if reason is not None:
        return f"{label}: accepted, but has no answer ({type(reason).__name__}: {str(reason)[:100]})"
    counts["right"] += 1
    floating = [t for t in tensors if t.is_floating_point() and t.numel()]
    largest = max((float(t.double().abs().nan_to_num(0.0, torch.inf).max()) for t in floating), default=0)
    wrong = compare(got, expected, narrowest(a), largest)
    written = next((key for key, value in a.items() if isinstance(value, list)), None)
    if wrong is None and written is not None:
        wrong = compare(a[written], wide[written], narrowest(a), largest)
    return None if wrong is None else f"{label}: {wrong}"


def judged(
    op: str, raw: bool, a: Arguments, spoiled: str | None, error: Exception, label: str, counts: Counter[str]
) -> str | None:
    """Whether an error is one of ours: it names the op and the argument that was spoiled."""
    text = str(error)
    if raw and isinstance(error, RuntimeError) and text.startswith("TypeError: "):  # as csrc/common/errors.h has it
        error = TypeError(text.removeprefix("TypeError: "))
        text = str(error)
    if "allocate memory" in text or isinstance(error, MemoryError):
        counts["no memory"] += 1
        return None
    if spoiled is None:
        return f"{label}: a right call was refused: {text[:200]}"
    sparse = any(isinstance(t, Tensor) and t.layout != torch.strided for t in flat(a))
    if raw and (sparse or SCHEMA.search(text)):  # torch's own, for what its dispatcher does not hand to the op
        counts["refused by torch"] += 1
        return None
    counts["refused"] += 1
    family = re.sub("_(diff|sq|sqnorm|dot)$", "", op)
    # Where two arguments do not fit each other, either may be named.
    names = [spoiled] if WRONG_TYPE.search(text) else [*a, "x_new", "probs"]
    if (
        not isinstance(error, OURS)
        or not text.startswith((op, family))
        or not any(re.search(rf"\b{n}\b", text) for n in names)
    ):
        return f"{label}: {type(error).__name__} does not name {spoiled}: {text[:200]}"
    return None


def shown(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = list(value.stride()) if value.layout == torch.strided else value.layout
        return f"{str(value.dtype)[6:]}{list(value.shape)}/{layout}"
    if isinstance(value, dict):
        return ", ".join(f"{k}={shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value)


def main(seed: int, calls: int) -> None:
    draw, counts, wrong = Draw(seed), Counter[str](), []
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(2)
    for _ in range(calls):
        found = one(draw, counts)
        if found:
            wrong.append(found)
    print(json.dumps({"counts": counts, "wrong": wrong[:20]}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
