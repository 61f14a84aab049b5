"""Per-sample gradients of layers: sums, squares, norms and inner products, against autograd on single samples."""

import pytest
import torch

from tests.helpers import FLOATS, threads
from tests.ops.layer_problems import PROBLEMS
from unlearnx import ops
from unlearnx.selftest.layers import GRADIENT_KINDS, conv2d

# Of stored values, sums being held in float32 or better.
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def assert_near(got, expected, dtype):
    """Sums cancel: what rounding may cost is a share of the whole, not of each entry."""
    assert (got.cpu().double() - expected).norm() <= ROUNDING[dtype] * expected.norm()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("kind", [*GRADIENT_KINDS, "rows"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_reference(name, kind, paired, weighted, device):
    if weighted and kind in ("sqnorm", "dot"):
        pytest.skip("takes no weights")
    problem = PROBLEMS[name]
    tensors = problem.tensors(device=device, paired=paired, weighted=weighted)
    reduction = "none" if kind == "rows" else "sum"
    for got, expected in zip(*problem.results(kind.replace("rows", "diff"), tensors, reduction), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
@pytest.mark.parametrize("name", ["linear", "linear, sequences", "conv 3x3", "embedding", "scale_shift, statistics"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes(dtype, name, kind, device):
    problem = PROBLEMS[name]
    for got, expected in zip(*problem.results(kind, problem.tensors(dtype, device)), strict=True):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert got.dtype == (dtype if kind == "diff" else wide)
        assert_near(got, expected, dtype if kind == "diff" else wide)


@pytest.mark.parametrize("name", ["linear, sequences", "conv 3x3, channels last"])
def test_bfloat16_is_exact_up_to_the_sums(name, device):
    """Products of 16-bit values are exact in float32: nothing but the order of additions may differ."""
    problem = PROBLEMS[name]
    for got, expected in zip(*problem.results("sq", problem.tensors(torch.bfloat16, device)), strict=True):
        assert_near(got, expected, torch.float32)


@pytest.mark.parametrize("kind", ["diff", "sq", "sqnorm"])
@pytest.mark.parametrize("name", ["linear", "linear, long", "conv 3x3, many positions", "conv, groups", "embedding"])
def test_equal_bits_on_any_number_of_threads(name, kind):
    problem = PROBLEMS[name]
    tensors = problem.tensors(torch.float32)
    with threads(1):
        one = problem.results(kind, tensors)[0]
    for n in (2, 3):
        with threads(n):
            for a, b in zip(one, problem.results(kind, tensors)[0], strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["linear, sequences", "conv 3x3", "scale_shift, images"])
def test_nearby_pairs_do_not_cancel(name, device):
    """A change of one part in a million: d_i^2 from sums of squares would be lost in float32."""
    problem = PROBLEMS[name]
    x, dy, *_ = problem.tensors(torch.float32, device, paired=False)
    tensors = (x, dy, x, dy + 1e-3, None)
    for kind in ("sq", "sqnorm"):
        for got, expected in zip(*problem.results(kind, tensors), strict=True):
            assert (got.cpu() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_opcheck(name, kind, device):
    problem = PROBLEMS[name]
    *pairs, weight = problem.tensors(device=device)
    keywords = {k: v.to(device) if torch.is_tensor(v) else v for k, v in problem.settings.items()}
    arguments = list(problem.arguments(*pairs))
    for size in ("stride", "padding", "dilation"):
        if isinstance(keywords.get(size), int):
            keywords[size] = [keywords[size]] * 2
    if kind in ("diff", "sq"):
        if problem.family == "linear":
            arguments.append(weight)
        else:
            keywords["weight"] = weight
    if kind == "dot":
        names = ["v"] if len(problem.shapes) == 1 else ["v_scale", "v_shift"]
        keywords.update({n: torch.randn(s).to(pairs[1]) for n, s in zip(names, problem.shapes, strict=True)})
    torch.library.opcheck(getattr(torch.ops.unlearnx, f"{problem.family}_grad_{kind}"), tuple(arguments), keywords)


@pytest.mark.parametrize("kind", ["sq", "sqnorm", "dot"])
def test_backward_raises(kind):
    x, dy = torch.randn(3, 2, 4, requires_grad=True), torch.randn(3, 2, 5)
    keywords = dict(v=torch.randn(5, 4)) if kind == "dot" else {}
    result = getattr(ops, f"linear_grad_{kind}")(x, dy, **keywords)
    with pytest.raises(RuntimeError, match="not implemented"):
        result.sum().backward()


@pytest.mark.parametrize("name", ["linear, sequences", "conv 3x3", "embedding", "scale_shift, images"])
def test_compile(name):
    problem = PROBLEMS[name]
    *pairs, weight = problem.tensors(torch.float32)

    def op(*pairs):
        return problem.op("sq")(*problem.arguments(*pairs), weight=weight, **problem.settings)

    torch.testing.assert_close(torch.compile(op, fullgraph=True)(*pairs), op(*pairs))


def test_autocast_does_not_lower_the_precision(device):
    for name in ("linear", "linear, sequences", "conv 3x3"):
        problem = PROBLEMS[name]
        *pairs, _ = problem.tensors(torch.float32, device)
        for kind in ("sq", "sqnorm"):
            op = problem.op(kind)
            expected = op(*problem.arguments(*pairs), **problem.settings)
            with torch.autocast(device, torch.bfloat16):
                assert torch.equal(op(*problem.arguments(*pairs), **problem.settings), expected)


def test_non_contiguous(device):
    x = torch.randn(4, 6, 9, 12, device=device)[:, ::2, :, 1:]
    dy = torch.randn(4, 9, 11, 10, device=device).permute(0, 3, 1, 2)[:, :5]
    weight = torch.rand(8, device=device)[::2]
    problem = conv2d(4, 3, (9, 11), 5, 3, padding=1)
    for kind in GRADIENT_KINDS:
        for got, expected in zip(*problem.results(kind, (x, dy, x + 1, dy * 2, weight)), strict=True):
            torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-4, atol=1e-4)


def test_infinities_stay_infinite():
    x, dy = torch.ones(7, 3), torch.ones(7, 2)
    x[:, 0] = torch.inf
    rows = ops.linear_grad_diff(x, dy, reduction="none")
    assert torch.equal(rows, torch.einsum("no,ni->noi", dy, x))
    assert torch.equal(ops.linear_grad_diff(x, dy), dy.T @ x)


X, DY = torch.ones(2, 4, 5, 5), torch.ones(2, 6, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.conv2d_grad_sq(X[0], DY, 3), ValueError, r"x has shape \[4, 5, 5\], expected \(N, C, H, W\)"),
        (lambda: ops.conv2d_grad_sq(X, DY[:1], 3), ValueError, r"dy has shape .* N = 2 as x"),
        (lambda: ops.conv2d_grad_sq(X, DY, 2), ValueError, "dy has 3 rows, expected 4 for the 5 of x"),
        (lambda: ops.conv2d_grad_sq(X, DY, 7), ValueError, "dy has 3 rows, expected 0"),
        (lambda: ops.conv2d_grad_sq(X, DY, 3, stride=0), ValueError, r"stride is \[0, 0\], expected values from 1 to"),
        (
            lambda: ops.conv2d_grad_sq(X, DY, 3, groups=4),
            ValueError,
            "groups is 4, expected a divisor of x's 4 and dy's 6",
        ),
        (lambda: ops.conv2d_grad_sqnorm(X, DY.double(), 3), TypeError, "dy has dtype Double, but x has Float"),
        (lambda: ops.conv2d_grad_diff(X, DY, 3, weight=torch.ones(3)), ValueError, r"weight has shape \[3\]"),
        (lambda: ops.conv2d_grad_diff(X, DY, 3, X), ValueError, "x_new and dy_new come together, got only x_new"),
        (lambda: ops.conv2d_grad_diff(X, DY, 3, reduction="mean"), ValueError, "reduction is 'mean'"),
        (lambda: ops.conv2d_grad_dot(X, DY, 3, v=torch.ones(6, 4, 3, 2)), ValueError, r"v has shape \[6, 4, 3, 2\]"),
        (lambda: ops.linear_grad_dot(X, X, v=torch.ones(5, 4)), ValueError, r"v has shape \[5, 4\], expected \[5, 5\]"),
        (lambda: ops.linear_grad_sq(X, DY), ValueError, "with the leading sizes of x"),
        (lambda: ops.embedding_grad_sq(X, X, 5), TypeError, "x has dtype Float, expected token numbers"),
        (lambda: ops.embedding_grad_sq(torch.tensor([7]), torch.ones(1, 2), 5), IndexError, "tokens from 7 to 7"),
        (lambda: ops.embedding_grad_sqnorm(torch.tensor([[1]]), torch.ones(1, 2), 5), ValueError, "dy has shape"),
        (lambda: ops.scale_shift_grad_sq(X, DY), ValueError, "dy has shape"),
        (lambda: ops.scale_shift_grad_sq(X, X, dim=0), ValueError, "dim is 0, expected the channels' dimension"),
        (lambda: ops.scale_shift_grad_sq(X, X, dim=1, mean=torch.ones(4)), ValueError, "got only mean"),
        (lambda: ops.scale_shift_grad_sq(X, X, mean=torch.ones(4), rstd=torch.ones(4)), ValueError, r"expected \[5\]"),
    ],
)
def test_clear_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_more_than_two_to_the_31_entries(device):
    """x holds 2^31 + 2^16 values; only the last sample differs from zero."""
    n = 2**15 + 1
    x = torch.zeros(n, 1, 65536, dtype=torch.bfloat16, device=device)
    dy = torch.ones(n, 1, 1, dtype=torch.bfloat16, device=device)
    x[-1, 0, -1] = 3.0
    assert ops.linear_grad_sqnorm(x, dy)[-1].item() == 9.0
    images = x.view(n, 1, 256, 256)
    squares = ops.conv2d_grad_sq(images, images, 3, padding=1)
    assert squares[0, 0, 1, 1].item() == 81.0
    assert squares.sum().item() == 81.0
    scale, _ = ops.scale_shift_grad_sq(images, images, dim=1)
    assert scale.item() == 81.0
