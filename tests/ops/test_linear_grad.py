import math

import pytest
import torch

from tests.helpers import FLOATS, assert_close
from unlearnx.ops import linear_grad_diff

# leading sizes, outputs, inputs: plain, sequences, odd, empty
PROBLEMS = [
    ((5,), 3, 4),
    ((1,), 1, 1),
    ((7, 9), 5, 3),
    ((4, 2, 3), 6, 33),
    ((0,), 3, 2),
    ((3, 0), 2, 2),
    ((2, 5), 0, 4),
    ((6,), 130, 67),
]


def arguments(leading, outputs, inputs, dtype=torch.float64, device="cpu", paired=True, weighted=True):
    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, device=device)

    x, dy = draw(*leading, inputs), draw(*leading, outputs)
    pair = (draw(*leading, inputs), draw(*leading, outputs)) if paired else (None, None)
    weight = draw(leading[0]) if weighted else None
    return x, dy, *pair, weight


def reference(x, dy, x_new, dy_new, weight, reduction):
    """One sample at a time, one position at a time, in float64."""

    def gradient(x_i, dy_i):
        positions = math.prod(x_i.shape[:-1])
        rows = x_i.double().reshape(positions, x.shape[-1]), dy_i.double().reshape(positions, dy.shape[-1])
        total = torch.zeros(dy.shape[-1], x.shape[-1], dtype=torch.float64, device=x.device)
        for x_t, dy_t in zip(*rows, strict=True):
            total += torch.outer(dy_t, x_t)
        return total

    rows = []
    for i in range(x.shape[0]):
        d = gradient(x[i], dy[i])
        if x_new is not None:
            d = gradient(x_new[i], dy_new[i]) - d
        rows.append(d if weight is None else d * weight[i].double())
    per_sample = torch.stack(rows) if rows else x.new_zeros(0, dy.shape[-1], x.shape[-1], dtype=torch.float64)
    return per_sample if reduction == "none" else per_sample.sum(0)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_equals_reference(problem, paired, weighted, reduction, device):
    args = arguments(*problem, device=device, paired=paired, weighted=weighted)
    result = linear_grad_diff(*args[:4], weight=args[4], reduction=reduction)
    assert_close(result, reference(*args, reduction), torch.float64)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("problem", [((8,), 5, 7), ((4, 3), 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes(dtype, problem, reduction, device):
    args = arguments(*problem, dtype=dtype, device=device)
    result = linear_grad_diff(*args[:4], weight=args[4], reduction=reduction)
    assert result.dtype == dtype
    assert_close(result, reference(*args, reduction), dtype)


def test_small_difference_of_large_sums_survives_16_bits(device):
    """Two sums near 4,096 that differ by 8: rounding either to bfloat16 (spacing 16) would lose the difference."""
    x = torch.ones(4096, 1, dtype=torch.bfloat16, device=device)
    dy_new = torch.ones_like(x)
    dy_new[:8] = 2.0
    assert linear_grad_diff(x, torch.ones_like(x), x, dy_new).item() == 8.0


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_does_not_lower_the_precision(reduction, device):
    args = arguments((64, 3), 5, 7, dtype=torch.float32, device=device)
    expected = linear_grad_diff(*args[:4], weight=args[4], reduction=reduction)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(linear_grad_diff(*args[:4], weight=args[4], reduction=reduction), expected)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_equals_autograd(reduction):
    layer = torch.nn.Linear(4, 3, bias=False).double()
    x = torch.randn(6, 5, 4, dtype=torch.float64)
    target = torch.randn(6, 5, 3, dtype=torch.float64)
    y = layer(x)
    (dy,) = torch.autograd.grad(((y - target) ** 2).sum(), y)
    rows = []
    for i in range(6):
        rows.append(torch.autograd.grad(((layer(x[i]) - target[i]) ** 2).sum(), layer.weight)[0])
    expected = torch.stack(rows) if reduction == "none" else sum(rows)
    torch.testing.assert_close(linear_grad_diff(x, dy, reduction=reduction), expected)


def test_non_contiguous(device):
    x = torch.randn(4, 6, 10, device=device)[:, ::2, 1:]
    dy = torch.randn(6, 4, 3, device=device).transpose(0, 1)[:, :3]
    args = (x, dy, x + 1, dy * 2, torch.rand(8, device=device)[::2])
    for reduction in ("sum", "none"):
        result = linear_grad_diff(*args[:4], weight=args[4], reduction=reduction)
        assert_close(result, reference(*args, reduction), torch.float32)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("paired", [False, True])
def test_derivatives(paired, reduction):
    args = arguments((3, 2), 2, 4, paired=paired)
    tensors = [a.requires_grad_() for a in args if a is not None]

    def op(*values):
        weight, rest = values[-1], values[:-1]
        return linear_grad_diff(*rest, weight=weight, reduction=reduction)

    torch.autograd.gradcheck(op, tensors, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(op, tensors)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_vmap(weighted, reduction):
    batches = [arguments((3, 2), 2, 4, weighted=weighted) for _ in range(5)]
    x, dy, x_new, dy_new, weight = ([b[k] for b in batches] for k in range(5))
    expected = torch.stack([reference(*b, reduction) for b in batches])

    def op(x, dy, x_new, dy_new, weight):
        return linear_grad_diff(x, dy, x_new, dy_new, weight=weight, reduction=reduction)

    stacked = [torch.stack(t) for t in (x, dy, x_new, dy_new)] + [torch.stack(weight) if weighted else None]
    in_dims = (0, 0, 0, 0, 0 if weighted else None)
    torch.testing.assert_close(torch.func.vmap(op, in_dims=in_dims)(*stacked), expected)
    shared = reference(x[0], dy[1], x_new[1], dy_new[1], weight[1], reduction)
    mapped = torch.func.vmap(op, in_dims=(None, 0, 0, 0, in_dims[4]))(x[0], *stacked[1:])
    torch.testing.assert_close(mapped[1], shared)


def test_func_transforms():
    x, dy, *_ = arguments((3,), 2, 4)

    def loss(x):
        return (linear_grad_diff(x, dy) ** 2).sum()

    expected = torch.autograd.functional.jacobian(loss, x)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    tangent = torch.randn_like(x)
    _, directional = torch.func.jvp(loss, (x,), (tangent,))
    torch.testing.assert_close(directional, (expected * tangent).sum())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=torch.ones(3)), ValueError, r"x has shape \[3\], expected \(N, ..., I\)"),
        (
            dict(dy=torch.ones(4, 2)),
            ValueError,
            r"dy has shape \[4, 2\], expected \(N, ..., O\) with the leading",
        ),
        (dict(dy=torch.ones(3, 2, dtype=torch.float64)), TypeError, "dy has dtype Double, but x has Float"),
        (dict(x=torch.ones(3, 4, dtype=torch.int64)), TypeError, "x has dtype Long"),
        (dict(x_new=torch.ones(3, 4)), ValueError, "x_new and dy_new come together, got only x_new"),
        (
            dict(x_new=torch.ones(3, 5), dy_new=torch.ones(3, 2)),
            ValueError,
            r"x_new has shape \[3, 5\], expected",
        ),
        (dict(weight=torch.ones(4)), ValueError, r"weight has shape \[4\], expected \(N,\) = \[3\]"),
        (dict(reduction="mean"), ValueError, "reduction is 'mean', expected 'sum' or 'none'"),
    ],
)
def test_clear_errors(change, error, message):
    values = dict(x=torch.ones(3, 4), dy=torch.ones(3, 2))
    with pytest.raises(error, match=message):
        linear_grad_diff(**{**values, **change})


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_opcheck(problem, reduction, device):
    args = [None if a is None else a.requires_grad_() for a in arguments(*problem, device=device)]
    torch.library.opcheck(torch.ops.unlearnx.linear_grad_diff, (*args, reduction))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_compile(requires_grad, device):
    args = [a.requires_grad_(requires_grad) for a in arguments((4, 3), 2, 5, device=device)]

    def op(*values):
        return linear_grad_diff(*values[:4], weight=values[4]).square().sum()

    compiled = torch.compile(op, fullgraph=True)(*args)
    torch.testing.assert_close(compiled, op(*args))
    if requires_grad:
        expected = torch.autograd.grad(op(*args), args)
        torch.testing.assert_close(torch.autograd.grad(compiled, args), expected)


@pytest.mark.slow
def test_more_than_two_to_the_31_entries(device):
    x = torch.ones(2**15 + 1, 256, dtype=torch.bfloat16, device=device)
    dy = torch.full((2**15 + 1, 256), 2.0, dtype=torch.bfloat16, device=device)
    x[-1, -1] = 3.0
    result = linear_grad_diff(x, dy, reduction="none")
    assert result.numel() > 2**31
    assert result[-1, -1, -2:].tolist() == [2.0, 6.0]
