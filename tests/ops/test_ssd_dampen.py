import pytest
import torch

from tests.helpers import FLOATS, LIST_LENGTHS, SHAPES, assert_close, copies, many_shapes, tensors, threads
from unlearnx.ops import ssd_dampen_
from unlearnx.selftest.references import ssd_dampen as reference

RULES = [
    dict(alpha=1.5, lam=1.0),
    dict(alpha=0.5, lam=0.3, exponent=2.0),
    dict(alpha=0.0, lam=2.0, exponent=0.5, bound=0.7),
]


def published(params, full, forget, alpha, lam, exponent=1.0, bound=1.0):
    """The public code's step, operation by operation, in the dtype of the parameters."""
    for p, oimp, fimp in zip(params, full, forget, strict=True):
        locations = torch.where(fimp > oimp.mul(alpha))
        update = (oimp.mul(lam).div(fimp)).pow(exponent)[locations]
        update[torch.where(update > bound)] = bound
        p[locations] = p[locations].mul(update)


def arguments(shapes, dtype, device, importance_dtype=None):
    importance_dtype = importance_dtype or dtype
    params = tensors(shapes, dtype, device)
    full = tensors(shapes, importance_dtype, device, 0.0, 1.0)
    forget = tensors(shapes, importance_dtype, device, 0.0, 2.0)
    return params, full, forget


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_reference(dtype, rule, device):
    params, full, forget = arguments(SHAPES, dtype, device)
    expected, expected_counts = reference(params, full, forget, **rule)
    counts = ssd_dampen_(params, full, forget, **rule)
    for p, e in zip(params, expected, strict=True):
        assert_close(p, e, dtype)
    assert counts.dtype == torch.int64
    assert counts.device == params[0].device
    # In 16 bits alpha * full may round onto forget: such entries may fall either way.
    slack = 0 if dtype in (torch.float32, torch.float64) else 0.01 * counts.max().item()
    assert (counts - expected_counts).abs().max() <= slack


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_published_step(rule, device):
    params, full, forget = arguments(SHAPES, torch.float32, device)
    theirs = copies(params)
    published([t for t in theirs if t.dim()], *([t for t in ts if t.dim()] for ts in (full, forget)), **rule)
    ssd_dampen_(params, full, forget, **rule)
    for p, t in zip(params, theirs, strict=True):
        if t.dim():
            torch.testing.assert_close(p, t, rtol=1e-6, atol=0)


@pytest.mark.parametrize("importance_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_dtypes(dtype, importance_dtype, device):
    params, full, forget = arguments(SHAPES, dtype, device, importance_dtype)
    expected, _ = reference(params, full, forget, alpha=1.0, lam=0.5)
    ssd_dampen_(params, full, forget, alpha=1.0, lam=0.5)
    for p, e in zip(params, expected, strict=True):
        assert_close(p, e, dtype)


def test_lists_of_different_dtypes(device):
    lists = arguments([(5,)], torch.float32, device), arguments([(7,)], torch.float64, device)
    params, full, forget = (a + b for a, b in zip(*lists, strict=True))
    expected, counts = reference(params, full, forget, 1.0, 1.0)
    assert torch.equal(ssd_dampen_(params, full, forget, 1.0, 1.0), counts)
    for p, e in zip(params, expected, strict=True):
        assert_close(p, e, p.dtype)


def test_non_contiguous(device):
    base = torch.randn(40, 30, device=device)
    views = [base.t()[::2], torch.randn(2, 8, 5, 5, device=device).to(memory_format=torch.channels_last)]
    full = [torch.rand_like(v) for v in views]
    forget = [2 * torch.rand(v.shape, device=device) for v in views]
    untouched = base[:, 1::2].clone()
    expected, counts = reference(views, full, forget, 1.0, 1.0)
    assert torch.equal(ssd_dampen_(views, full, forget, 1.0, 1.0), counts)
    for v, e in zip(views, expected, strict=True):
        assert_close(v, e, torch.float32)
    assert torch.equal(base[:, 1::2], untouched)


def test_leaves_need_no_no_grad(device):
    """As in an optimizer step, autograd records nothing: neither for dense parameters nor for strided ones."""
    dense = torch.ones(4, device=device, requires_grad=True)
    strided = torch.ones(4, 2, device=device)[:, 0].requires_grad_()
    for p in (dense, strided):
        ssd_dampen_([p], [torch.zeros(4, device=device)], [torch.ones(4, device=device)], 1.0, 1.0)
        assert p.abs().max() == 0
        assert p.is_leaf
        assert p._version == 1


def test_empty_list():
    counts = ssd_dampen_([], [], [], 1.0, 1.0)
    assert counts.shape == (0,)
    assert counts.dtype == torch.int64


@pytest.mark.parametrize("count", LIST_LENGTHS)
def test_as_many_tensors_as_launches_hold(count, device):
    params, full, forget = arguments(many_shapes(count), torch.float32, device)
    expected, counts = reference(params, full, forget, 1.0, 0.5)
    assert torch.equal(ssd_dampen_(params, full, forget, 1.0, 0.5), counts)
    for p, e in zip(params, expected, strict=True):
        assert_close(p, e, torch.float32)


def test_nan_importances_select_nothing(device):
    p = torch.ones(4, device=device)
    nan = torch.tensor([float("nan"), 1.0, float("nan"), 1.0], device=device)
    forget = torch.tensor([1.0, float("nan"), float("nan"), 2.0], device=device)
    assert ssd_dampen_([p], [nan], [forget], 1.0, 1.0).item() == 1
    assert p.tolist() == [1.0, 1.0, 1.0, 0.5]


def test_autograd_notices(device):
    p = torch.randn(5, device=device, requires_grad=True)
    loss = (p**2).sum()
    version = p._version
    ssd_dampen_([p], [torch.zeros(5, device=device)], [torch.ones(5, device=device)], 1.0, 1.0)
    assert p._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("n", [1, 2])
def test_does_not_depend_on_threads(n):
    params, full, forget = arguments([(100_003,)], torch.float32, "cpu")
    expected = copies(params)
    counts = ssd_dampen_(expected, full, forget, 1.0, 1.0)
    with threads(n):
        assert torch.equal(ssd_dampen_(params, full, forget, 1.0, 1.0), counts)
    assert torch.equal(params[0], expected[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(alpha=-1.0), ValueError, "alpha is -1, expected a finite number >= 0"),
        (dict(lam=float("nan")), ValueError, "lam is nan"),
        (dict(exponent=-2.0), ValueError, "exponent is -2"),
        (dict(bound=float("inf")), ValueError, "bound is inf"),
        (dict(importance_full=[]), ValueError, "importance_full has 0 tensors, but params has 1"),
        (
            dict(importance_forget=[torch.rand(4)]),
            ValueError,
            r"importance_forget\[0\] has shape \[4\], expected \[3\] as params\[0\]",
        ),
        (dict(params=[torch.ones(3, dtype=torch.int64)]), TypeError, r"params\[0\] has dtype Long"),
        (
            dict(importance_full=[torch.ones(3, dtype=torch.complex64)]),
            TypeError,
            r"importance_full\[0\] has dtype",
        ),
    ],
)
def test_clear_errors(change, error, message):
    values = dict(
        params=[torch.ones(3)],
        importance_full=[torch.rand(3)],
        importance_forget=[torch.rand(3)],
        alpha=1.0,
        lam=1.0,
    )
    with pytest.raises(error, match=message):
        ssd_dampen_(**{**values, **change})


@pytest.mark.cuda
def test_devices_may_not_mix():
    with pytest.raises(ValueError, match=r"importance_full\[0\] is on cpu, but params\[0\] is on cuda:0"):
        ssd_dampen_([torch.ones(3, device="cuda")], [torch.ones(3)], [torch.ones(3, device="cuda")], 1.0, 1.0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype, device):
    torch.library.opcheck(torch.ops.unlearnx.ssd_dampen_, (*arguments(SHAPES, dtype, device), 1.0, 0.5))


def test_compile(device):
    params, full, forget = arguments([(64, 3), (7,)], torch.float32, device)
    eager = copies(params)
    counts = ssd_dampen_(eager, full, forget, 1.0, 0.5)
    compiled = torch.compile(ssd_dampen_, fullgraph=True)
    assert torch.equal(compiled(params, full, forget, 1.0, 0.5), counts)
    assert all(torch.equal(p, e) for p, e in zip(params, eager, strict=True))


@pytest.mark.slow
def test_more_than_two_to_the_31_entries(device):
    n = 2**31 + 100
    p = torch.ones(n, dtype=torch.bfloat16, device=device)
    full, forget = torch.zeros_like(p), torch.zeros_like(p)
    forget[-3:] = 1.0
    assert ssd_dampen_([p], [full], [forget], 1.0, 1.0).item() == 3
    assert p[-4:].tolist() == [1.0, 0.0, 0.0, 0.0]
