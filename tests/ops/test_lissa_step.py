import pytest
import torch

from tests.helpers import FLOATS, LIST_LENGTHS, SHAPES, TOLERANCE, assert_close, copies, many_shapes, tensors, threads
from unlearnx.ops import lissa_step_
from unlearnx.selftest.references import lissa_step as reference


def arguments(shapes, dtype, device="cpu", rest=None):
    return tuple(tensors(shapes, d, device) for d in (dtype, rest or dtype, rest or dtype))


@pytest.mark.parametrize(("damping", "scale"), [(0.01, 3.0), (0.0, 1.0), (0.5, 0.1)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_reference(dtype, damping, scale, device):
    h, v, hv = arguments(SHAPES, dtype, device)
    expected, change = reference(h, v, hv, damping, scale)
    norm = lissa_step_(h, v, hv, damping, scale)
    for a, e in zip(h, expected, strict=True):
        assert_close(a, e, dtype)
    assert norm.shape == ()
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(norm.double(), change, rtol=TOLERANCE[dtype]["rtol"], atol=0)


@pytest.mark.parametrize("rest", [torch.float32, torch.float64])
def test_mixed_dtypes(rest, device):
    h, v, hv = arguments(SHAPES, torch.float32, device, rest)
    expected, _ = reference(h, v, hv, 0.1, 2.0)
    lissa_step_(h, v, hv, 0.1, 2.0)
    for a, e in zip(h, expected, strict=True):
        assert_close(a, e, torch.float32)


def test_non_contiguous(device):
    base = torch.randn(20, 30, device=device)
    h = [base.t()[::3]]
    v, hv = [torch.randn(10, 20, device=device)], [torch.randn(20, 10, device=device).t()]
    expected, change = reference(h, v, hv, 0.1, 2.0)
    norm = lissa_step_(h, v, hv, 0.1, 2.0)
    assert_close(h[0], expected[0], torch.float32)
    torch.testing.assert_close(norm.double(), change, rtol=1e-5, atol=0)


def test_fixed_point_is_the_damped_solution():
    factor = torch.randn(6, 6, dtype=torch.float64)
    curvature, b = factor @ factor.T, torch.randn(6, dtype=torch.float64)
    scale = torch.linalg.eigvalsh(curvature)[-1].item()
    damping = 0.05
    h = [b.clone()]
    for _ in range(2000):
        norm = lissa_step_(h, [b], [curvature @ h[0]], damping, scale)
    expected = torch.linalg.solve(curvature + damping * scale * torch.eye(6, dtype=torch.float64), b)
    torch.testing.assert_close(h[0] / scale, expected)
    assert norm < 1e-10


def test_empty_list():
    assert lissa_step_([], [], [], 0.1, 1.0).item() == 0


@pytest.mark.parametrize("count", LIST_LENGTHS)
def test_as_many_tensors_as_launches_hold(count, device):
    h, v, hv = arguments(many_shapes(count), torch.float32, device)
    expected, change = reference(h, v, hv, 0.1, 2.0)
    torch.testing.assert_close(lissa_step_(h, v, hv, 0.1, 2.0).double(), change, rtol=1e-5, atol=0)
    for a, e in zip(h, expected, strict=True):
        assert_close(a, e, torch.float32)


def test_divergence_is_visible_in_the_norm(device):
    h, v, hv = ([torch.full((3,), value, device=device)] for value in (1.0, 1.0, float("inf")))
    assert not lissa_step_(h, v, hv, 0.0, 1.0).isfinite()


def test_a_norm_beyond_float32_is_infinite(device):
    h, v, hv = [torch.zeros(4, device=device)], [torch.full((4,), 3e38, device=device)], [torch.zeros(4, device=device)]
    assert lissa_step_(h, v, hv, 0.1, 2.0).isinf()


def test_autograd_notices(device):
    h = torch.randn(5, device=device, requires_grad=True)
    loss = (h**2).sum()
    lissa_step_([h], [torch.ones(5, device=device)], [torch.ones(5, device=device)], 0.1, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("n", [1, 2])
def test_does_not_depend_on_threads(n):
    h, v, hv = arguments([(100_003,), (17,)], torch.float32)
    expected = copies(h)
    norm = lissa_step_(expected, v, hv, 0.1, 2.0)
    with threads(n):
        assert torch.equal(lissa_step_(h, v, hv, 0.1, 2.0), norm)
    assert torch.equal(h[0], expected[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(scale=0.0), ValueError, "scale is 0, expected a finite number > 0"),
        (dict(scale=float("nan")), ValueError, "scale is nan"),
        (dict(damping=-0.1), ValueError, "damping is -0.1"),
        (dict(v=[]), ValueError, "v has 0 tensors, but h has 1"),
        (dict(hv=[torch.ones(4)]), ValueError, r"hv\[0\] has shape \[4\], expected \[3\] as h\[0\]"),
        (dict(v=[torch.ones(3, dtype=torch.int32)]), TypeError, r"v\[0\] has dtype Int"),
    ],
)
def test_clear_errors(change, error, message):
    values = dict(h=[torch.ones(3)], v=[torch.ones(3)], hv=[torch.ones(3)], damping=0.1, scale=1.0)
    with pytest.raises(error, match=message):
        lissa_step_(**{**values, **change})


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype, device):
    torch.library.opcheck(torch.ops.unlearnx.lissa_step_, (*arguments(SHAPES, dtype, device), 0.1, 2.0))


def test_compile(device):
    h, v, hv = arguments([(64, 3), (7,)], torch.float32, device)
    eager = copies(h)
    norm = lissa_step_(eager, v, hv, 0.1, 2.0)
    assert torch.equal(torch.compile(lissa_step_, fullgraph=True)(h, v, hv, 0.1, 2.0), norm)
    assert all(torch.equal(a, e) for a, e in zip(h, eager, strict=True))
