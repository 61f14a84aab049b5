import math

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import FLOATS, TOLERANCE, assert_close, threads
from unlearnx.ops import lissa_softmax_linear, softmax_linear_hvp
from unlearnx.selftest.references import lissa_softmax_linear as published_loop
from unlearnx.selftest.references import softmax_linear_hvp as by_autograd

# N, F, C, K; K is None where v has no leading dimension.
SIZES = [(1, 1, 2, None), (37, 19, 2, None), (37, 19, 10, 1), (301, 23, 10, 3), (65, 33, 33, 32), (17, 5, 3, 70)]
BATCH_SIZES = [None, 1, 16, 1000]
LOOP = dict(damping=0.01, scale=3.0, iterations=12)


def problem(n, features, classes, sides, dtype=torch.float32, device="cpu"):
    """Features, logits and right-hand sides, values that every dtype holds exactly enough."""
    h = torch.randn(n, features, device=device) / math.sqrt(features)
    logits = 2 * torch.randn(n, classes, device=device)
    v = torch.randn(*([] if sides is None else [sides]), classes, features, device=device)
    return tuple(t.to(dtype) for t in (h, logits, v))


def close_to(actual, expected, dtype):
    """Relative to the largest value: entries near zero are differences of large ones."""
    size = expected.abs().max().clamp(min=1e-30)
    torch.testing.assert_close(
        actual.double().cpu() / size, expected.cpu() / size, rtol=0, atol=4 * TOLERANCE[dtype]["rtol"], equal_nan=True
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_hvp_equals_autograd(dtype, size, device):
    h, logits, v = problem(*size, dtype, device)
    product = softmax_linear_hvp(h, logits, v, from_logits=True)
    assert product.shape == v.shape
    assert product.dtype == dtype
    close_to(product, by_autograd(h, logits, v), dtype)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("size", SIZES)
def test_lissa_equals_published_loop(size, batch_size, device):
    arguments = problem(*size, torch.float64, device)
    x, history = lissa_softmax_linear(*arguments, **LOOP, batch_size=batch_size, from_logits=True)
    expected, changes = published_loop(*(t.cpu() for t in arguments), **LOOP, batch_size=batch_size)
    assert x.shape == arguments[2].shape
    assert history.shape == changes.shape
    close_to(x, expected, torch.float64)
    close_to(history, changes, torch.float64)


@pytest.mark.parametrize("dtype", FLOATS)
def test_lissa_in_every_dtype(dtype, device):
    arguments = problem(37, 19, 10, 3, dtype, device)
    x, history = lissa_softmax_linear(*arguments, **LOOP, batch_size=16, from_logits=True)
    expected, changes = published_loop(*(t.cpu() for t in arguments), **LOOP, batch_size=16)
    assert x.dtype == dtype
    assert history.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close_to(x, expected, dtype)
    close_to(history, changes, torch.float64 if dtype == torch.float64 else torch.float32)


def test_order(device):
    h, logits, v = problem(37, 19, 10, 3, torch.float64, device)
    order = torch.randperm(37, device=device)
    options = dict(LOOP, batch_size=10)
    x, history = lissa_softmax_linear(h, logits, v, **options, order=order, from_logits=True)
    expected, changes = published_loop(h.cpu(), logits.cpu(), v.cpu(), **options, order=order.cpu())
    close_to(x, expected, torch.float64)
    close_to(history, changes, torch.float64)


@pytest.mark.parametrize("patience", [1, 3, 8])
def test_every_right_hand_side_stops_by_itself(patience, device):
    arguments = problem(9, 7, 4, 6, torch.float64, device)
    options = dict(damping=1e-3, scale=1.5, batch_size=1, iterations=60, patience=patience)
    x, history = lissa_softmax_linear(*arguments, **options, from_logits=True)
    expected, changes = published_loop(*(t.cpu() for t in arguments), **options)
    stops = (~changes.isnan()).sum(0)
    assert len(set(stops.tolist())) > 1
    assert stops.max() < 60
    assert torch.equal(history.isnan().cpu(), changes.isnan())
    close_to(history, changes, torch.float64)
    close_to(x, expected, torch.float64)


def test_divergence_is_visible_in_the_history(device):
    h, logits, v = problem(37, 19, 10, 3, torch.float32, device)
    v[1] = 0  # the zero right-hand side has nothing to amplify
    x, history = lissa_softmax_linear(h, logits, v, damping=0.0, scale=1e-6, iterations=30, from_logits=True)
    assert (~history.isfinite()).any(0).tolist() == [True, False, True]
    assert history[:, 1].abs().max() == 0
    assert x[1].abs().max() == 0


def test_fixed_point_is_the_damped_solution():
    h, logits, v = problem(50, 6, 3, 2, torch.float64)
    x, history = lissa_softmax_linear(h, logits, v, damping=0.05, scale=1.0, iterations=500)
    image = softmax_linear_hvp(h, logits, x) + 0.05 * x
    torch.testing.assert_close(image, v)
    assert history[-1].max() < 1e-10


def test_weights_of_a_real_head(device):
    """The probabilities of a head with weights give the Hessian at these weights; a bias is a column of ones."""
    h, _, v = problem(41, 7, 5, None, torch.float64, device)
    head = torch.nn.Linear(7, 5, dtype=torch.float64, device=device)
    y, bias = torch.randint(5, (41,), device=device), torch.randn(5, dtype=torch.float64, device=device)
    loss = F.cross_entropy(head(h), y)
    parameters = list(head.parameters())
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    expected = torch.autograd.grad(gradient, parameters, (v, bias))
    ones = torch.ones(41, 1, dtype=torch.float64, device=device)
    with torch.no_grad():
        logits = head(h)
    product = softmax_linear_hvp(torch.cat([h, ones], 1), logits, torch.cat([v, bias[:, None]], 1))
    torch.testing.assert_close(product, torch.cat([expected[0], expected[1][:, None]], 1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_probabilities_are_recognised(dtype, device):
    h, logits, v = problem(300, 5, 20, 3, dtype, device)
    probs = logits.softmax(1)
    assert torch.equal(softmax_linear_hvp(h, logits, v), softmax_linear_hvp(h, logits, v, from_logits=True))
    assert torch.equal(softmax_linear_hvp(h, probs, v), softmax_linear_hvp(h, probs, v, from_logits=False))
    assert not torch.equal(softmax_linear_hvp(h, probs, v), softmax_linear_hvp(h, probs, v, from_logits=True))
    assert_close(softmax_linear_hvp(h, probs, v), softmax_linear_hvp(h, logits, v), dtype)


def test_positive_logits_are_not_taken_for_probabilities():
    h, logits, v = problem(8, 5, 3, None)
    logits = logits.softmax(1)
    logits[3, 1] += 0.01
    assert torch.equal(softmax_linear_hvp(h, logits, v), softmax_linear_hvp(h, logits, v, from_logits=True))


def test_mixed_dtypes(device):
    h, logits, v = problem(37, 19, 10, 3, torch.float32, device)
    h, v = h.bfloat16(), v.double()
    product = softmax_linear_hvp(h, logits, v, from_logits=True)
    assert product.dtype == torch.float64
    close_to(product, by_autograd(h, logits, v), torch.float32)


def test_non_contiguous(device):
    h, logits, v = problem(37, 19, 10, 3, torch.float64, device)
    given = torch.stack([h, h], 2)[:, :, 0], logits.T.contiguous().T, v.transpose(0, 2).contiguous().transpose(0, 2)
    assert not any(t.is_contiguous() for t in given)
    assert torch.equal(softmax_linear_hvp(*given), softmax_linear_hvp(h, logits, v))
    for a, e in zip(lissa_softmax_linear(*given, **LOOP), lissa_softmax_linear(h, logits, v, **LOOP), strict=True):
        assert torch.equal(a, e)


def test_arguments_are_left_alone(device):
    for sides in (None, 1, 3):
        arguments = problem(37, 19, 10, sides, torch.float32, device)
        before = [t.clone() for t in arguments]
        softmax_linear_hvp(*arguments)
        lissa_softmax_linear(*arguments, **LOOP)
        assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


def test_no_right_hand_sides(device):
    h, logits, v = problem(37, 19, 10, 0, torch.float32, device)
    assert softmax_linear_hvp(h, logits, v).shape == (0, 10, 19)
    x, history = lissa_softmax_linear(h, logits, v, **LOOP)
    assert x.shape == (0, 10, 19)
    assert history.shape == (12, 0)


@pytest.mark.parametrize("size", [*SIZES, (1000, 600, 10, None), (1000, 64, 10, 32), (257, 300, 3, 5)])
def test_does_not_depend_on_threads(size):
    arguments = problem(*size)

    def results():
        product = softmax_linear_hvp(*arguments, from_logits=True)
        full = lissa_softmax_linear(*arguments, **LOOP, from_logits=True)
        batched = lissa_softmax_linear(*arguments, **LOOP, batch_size=300, from_logits=True)
        return [product, *full, *batched]

    with threads(1):
        one = results()
    with threads(2):
        two = results()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_in_inference_mode_and_under_autocast(device):
    h, logits, v = problem(37, 19, 10, 3, torch.float32, device)
    expected = softmax_linear_hvp(h, logits, v), *lissa_softmax_linear(h, logits, v, **LOOP)
    with torch.autocast(device, torch.bfloat16):
        actual = softmax_linear_hvp(h, logits, v), *lissa_softmax_linear(h, logits, v, **LOOP)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    with torch.inference_mode():
        actual = softmax_linear_hvp(h + 0, logits, v), *lissa_softmax_linear(h + 0, logits, v, **LOOP)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_derivatives_are_refused(device):
    h, logits, v = problem(5, 4, 3, None, torch.float32, device)
    for result in (softmax_linear_hvp(h, logits, v.requires_grad_()), lissa_softmax_linear(h, logits, v, **LOOP)[0]):
        with pytest.raises(RuntimeError, match=r"derivative for unlearnx::.*softmax_linear.* is not implemented"):
            result.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(h=torch.ones(5)), ValueError, r"h has shape \[5\], expected \(N, F\) with N and F at least 1"),
        (dict(h=torch.ones(0, 4)), ValueError, r"h has shape \[0, 4\]"),
        (dict(h=torch.ones(5, 0)), ValueError, r"h has shape \[5, 0\]"),
        (dict(h=torch.ones(5, 4, dtype=torch.int32)), TypeError, "h has dtype Int, expected float32"),
        (
            dict(logits_or_probs=torch.ones(6, 3)),
            ValueError,
            r"logits_or_probs has shape \[6, 3\], expected \(N, C\) with N = 5 as h and C at least 1",
        ),
        (dict(logits_or_probs=torch.ones(5)), ValueError, r"logits_or_probs has shape \[5\]"),
        (dict(logits_or_probs=torch.ones(5, 0)), ValueError, r"logits_or_probs has shape \[5, 0\]"),
        (dict(logits_or_probs=torch.ones(5, 3, dtype=torch.long)), TypeError, "logits_or_probs has dtype Long"),
        (
            dict(v=torch.ones(4, 3)),
            ValueError,
            r"v has shape \[4, 3\], expected \(C, F\) or \(K, C, F\) with C = 3 and F = 4",
        ),
        (dict(v=torch.ones(12)), ValueError, r"v has shape \[12\]"),
        (dict(v=torch.ones(2, 2, 3, 4)), ValueError, r"v has shape \[2, 2, 3, 4\]"),
        (dict(v=torch.ones(3, 4, dtype=torch.bool)), TypeError, "v has dtype Bool"),
        (dict(damping=-0.1), ValueError, "damping is -0.1, expected a finite number >= 0"),
        (dict(damping=math.inf), ValueError, "damping is inf"),
        (dict(scale=0.0), ValueError, "scale is 0, expected a finite number > 0"),
        (dict(scale=math.nan), ValueError, "scale is nan"),
        (dict(iterations=0), ValueError, "iterations is 0, expected at least 1"),
        (dict(batch_size=0), ValueError, "batch_size is 0, expected at least 1"),
        (dict(patience=0), ValueError, "patience is 0, expected at least 1"),
        (dict(order=torch.arange(5.0)), TypeError, "order has dtype Float, expected int64"),
        (dict(order=torch.arange(4)), ValueError, r"order has shape \[4\], expected \(N,\) = \[5\]"),
        (dict(order=torch.arange(1, 6)), ValueError, "order has entries from 1 to 5, expected 0 to 4"),
        (dict(order=torch.arange(5) - 1), ValueError, "order has entries from -1 to 3"),
    ],
)
def test_clear_errors(change, error, message):
    tensors = dict(h=torch.ones(5, 4), logits_or_probs=torch.ones(5, 3), v=torch.ones(3, 4))
    with pytest.raises(error, match="lissa_softmax_linear: " + message):
        lissa_softmax_linear(**{**tensors, **LOOP, **change})
    if change.keys() <= tensors.keys():
        with pytest.raises(error, match="softmax_linear_hvp: " + message):
            softmax_linear_hvp(**{**tensors, **change})


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["h", "logits_or_probs", "v"])
def test_devices_belong_together(name):
    tensors = dict(h=torch.ones(5, 4), logits_or_probs=torch.ones(5, 3), v=torch.ones(3, 4))
    tensors[name] = tensors[name].cuda()
    with pytest.raises(ValueError, match=r"is on c.*, but h is on c"):
        softmax_linear_hvp(**tensors)


@pytest.mark.cuda
def test_does_not_synchronise():
    h, logits, v = problem(37, 19, 10, 3, device="cuda")
    options = dict(LOOP, batch_size=16, patience=2, order=torch.randperm(37, device="cuda"))
    lissa_softmax_linear(h, logits, v, **options, from_logits=True)  # warm-up: handles of the BLAS
    torch.cuda.set_sync_debug_mode("error")
    try:
        softmax_linear_hvp(h, logits, v, from_logits=True)
        lissa_softmax_linear(h, logits, v, **options, from_logits=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype, size, device):
    h, logits, v = problem(*size, dtype, device)
    probs = logits.softmax(1)
    torch.library.opcheck(torch.ops.unlearnx.softmax_linear_hvp, (h, probs, v))
    torch.library.opcheck(torch.ops.unlearnx.lissa_softmax_linear, (h, probs, v), LOOP)
    # Too patient to stop: opcheck takes the NaN after it for a difference.
    options = dict(LOOP, batch_size=5, patience=50, order=torch.randperm(len(h), device=device))
    torch.library.opcheck(torch.ops.unlearnx.lissa_softmax_linear, (h, probs, v), options)


def test_compile(device):
    arguments = problem(64, 16, 10, 3, torch.float32, device)
    hvp = torch.compile(softmax_linear_hvp, fullgraph=True)
    lissa = torch.compile(lissa_softmax_linear, fullgraph=True)
    assert_close(hvp(*arguments, from_logits=True), softmax_linear_hvp(*arguments), torch.float32)
    for a, e in zip(lissa(*arguments, **LOOP, from_logits=True), lissa_softmax_linear(*arguments, **LOOP), strict=True):
        assert_close(a, e, torch.float32)
