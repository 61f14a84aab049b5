import pytest
import torch

from tests.helpers import FLOATS, LIST_LENGTHS, SHAPES, copies, many_shapes, tensors, threads
from unlearnx.ops import fisher_mask_
from unlearnx.selftest.references import fisher_mask as reference

INF, NAN = float("inf"), float("nan")


def arguments(shapes, dtype, device, importance_dtype=None):
    params = [t + 2 for t in tensors(shapes, dtype, device)]
    forget, retain = (tensors(shapes, importance_dtype or dtype, device, 0.0, 1.0) for _ in range(2))
    return params, forget, retain


def check(params, forget, retain, ratio):
    """Masks, and compares every entry and count with the reference."""
    expected, counts = reference(params, forget, retain, ratio)
    result = fisher_mask_(params, forget, retain, ratio)
    assert result.dtype == torch.int64
    assert result.device == params[0].device
    assert torch.equal(result, counts)
    for p, e in zip(params, expected, strict=True):
        assert torch.equal(p, e)


@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.02, 0.5, 0.9999, 1.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_reference(dtype, ratio, device):
    inputs = arguments(SHAPES, dtype, device)
    torch.library.opcheck(torch.ops.unlearnx.fisher_mask_, (*map(copies, inputs), ratio))
    check(*inputs, ratio)


@pytest.mark.parametrize("spread", [1e-30, 1.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_all_magnitudes(dtype, spread, device):
    """Subnormal numbers, neighbours that differ in the last bit, and forty orders of magnitude."""
    params, forget, retain = arguments([(30_011,), (300, 7)], dtype, device)
    for t in [*forget, *retain]:
        t.sub_(0.5).mul_(1e-38).mul_(spread) if spread < 1 else t.log_().mul_(spread).exp_()
    check(params, forget, retain, 0.3)


@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.5, 0.99])
@pytest.mark.parametrize("dtype", FLOATS)
def test_ties_go_to_the_earlier_entry(dtype, ratio, device):
    params, forget, retain = arguments([(40_000,), (5,), (129, 300), (1,)], dtype, device)
    for f, r in zip(forget, retain, strict=True):
        f.mul_(3).floor_()
        r.zero_()
    check(params, forget, retain, ratio)


def test_both_zeros_are_equal(device):
    p = torch.ones(4, device=device)
    forget = torch.tensor([-0.0, 0.0, -0.0, 0.0], device=device)
    check([p], [forget], [torch.zeros_like(p)], 0.5)
    assert p.tolist() == [0, 0, 1, 1]


def test_infinite_scores_are_ordered_like_others(device):
    p = torch.ones(5, device=device)
    forget = torch.tensor([-INF, 1.0, INF, 0.0, INF], device=device)
    for ratio, expected in [(0.2, [1, 1, 0, 1, 1]), (0.6, [1, 0, 0, 1, 0]), (1.0, [0] * 5)]:
        masked = p.clone()
        check([masked], [forget], [torch.zeros_like(p)], ratio)
        assert masked.tolist() == expected


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_scores_are_never_selected(dtype, ratio, device):
    """Of either sign, and where a difference of infinities makes them."""
    params, forget, retain = arguments([(5000,), (70, 3)], dtype, device)
    forget[0][::3] = NAN
    retain[0][1::7] = NAN
    forget[1][5] = retain[1][5] = INF
    forget[1][6] = -torch.tensor(NAN, dtype=dtype, device=device)
    check(params, forget, retain, ratio)


@pytest.mark.parametrize("value", [NAN, INF])
def test_nothing_to_select_from(value, device):
    p = torch.ones(6, device=device)
    importances = torch.full_like(p, value)
    assert fisher_mask_([p], [importances], [importances], 1.0).tolist() == [0]
    assert p.tolist() == [1.0] * 6


@pytest.mark.parametrize("importance_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_mixed_dtypes(dtype, importance_dtype, device):
    check(*arguments(SHAPES, dtype, device, importance_dtype), 0.3)


def test_lists_of_different_dtypes(device):
    """One order over all, ties included, though launches group tensors by dtype."""
    for wide in (torch.float32, torch.float64):
        types = [torch.bfloat16, torch.float32, torch.float16, wide, torch.float32]
        inputs = [arguments([(5000,)], t, device, u) for t, u in zip(types, reversed(types), strict=True)]
        params, forget, retain = ([part[i][0] for part in inputs] for i in range(3))
        retain[0] = retain[0].half()
        for f, r in zip(forget, retain, strict=True):
            f.mul_(2).floor_()
            r.zero_()
        check(params, forget, retain, 0.45)


def test_non_contiguous(device):
    """Ties are taken by index, however memory is laid out."""
    base = torch.rand(40, 30, device=device) + 1
    params = [base.t()[::2], torch.rand(2, 8, 5, 5, device=device).to(memory_format=torch.channels_last) + 1]
    forget = [torch.randint_like(p, 2) for p in params]
    retain = [torch.zeros(p.shape, device=device) for p in params]
    untouched = base[:, 1::2].clone()
    check(params, forget, retain, 0.2)
    check(params, forget, retain, 0.45)
    assert torch.equal(base[:, 1::2], untouched)


def test_zeroes_parameters_that_are_not_finite(device):
    p = torch.tensor([NAN, INF, NAN], device=device)
    fisher_mask_([p], [torch.tensor([1.0, 1.0, 0.0], device=device)], [torch.zeros(3, device=device)], 0.7)
    assert p[:2].tolist() == [0, 0]
    assert p[2].isnan()


def test_leaves_need_no_no_grad(device):
    """As in an optimizer step, autograd records nothing: neither for dense parameters nor for strided ones."""
    dense = torch.ones(4, device=device, requires_grad=True)
    strided = torch.ones(4, 2, device=device)[:, 0].requires_grad_()
    for p in (dense, strided):
        fisher_mask_([p], [torch.ones(4, device=device)], [torch.zeros(4, device=device)], 1.0)
        assert p.abs().max() == 0
        assert p.is_leaf
        assert p._version == 1


def test_autograd_notices(device):
    p = torch.randn(5, device=device, requires_grad=True)
    loss = (p**2).sum()
    fisher_mask_([p], [torch.ones(5, device=device)], [torch.zeros(5, device=device)], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_empty_list():
    counts = fisher_mask_([], [], [], 0.5)
    assert counts.shape == (0,)
    assert counts.dtype == torch.int64


def test_empty_tensors(device):
    params, forget, retain = ([torch.empty(0, 3, device=device)] for _ in range(3))
    assert fisher_mask_(params, forget, retain, 1.0).tolist() == [0]


@pytest.mark.parametrize("count", LIST_LENGTHS)
def test_as_many_tensors_as_launches_hold(count, device):
    check(*arguments(many_shapes(count), torch.float32, device), 0.25)


@pytest.mark.parametrize("n", [1, 2])
def test_does_not_depend_on_threads(n):
    params, forget, retain = arguments([(100_003,), (70_000,)], torch.float32, "cpu")
    forget = [(10 * f).floor() for f in forget]
    retain = [(10 * r).floor() for r in retain]
    expected = copies(params)
    counts = fisher_mask_(expected, forget, retain, 0.5)
    with threads(n):
        assert torch.equal(fisher_mask_(params, forget, retain, 0.5), counts)
    assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))


@pytest.mark.cuda
def test_is_captured_in_a_graph():
    """Nothing in it waits for the device."""
    params, forget, retain = arguments([(10_000,), (300, 7)], torch.float32, "cuda")
    start = copies(params)
    expected, counts = reference(params, forget, retain, 0.3)
    fisher_mask_(copies(params), forget, retain, 0.3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = fisher_mask_(params, forget, retain, 0.3)
    for _ in range(2):
        for p, s in zip(params, start, strict=True):
            p.copy_(s)
        graph.replay()
        assert torch.equal(result, counts)
        assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(ratio=-0.1), ValueError, "ratio is -0.1, expected a number from 0 to 1"),
        (dict(ratio=1.5), ValueError, "ratio is 1.5"),
        (dict(ratio=NAN), ValueError, "ratio is nan"),
        (dict(importance_forget=[]), ValueError, "importance_forget has 0 tensors, but params has 1"),
        (
            dict(importance_retain=[torch.rand(4)]),
            ValueError,
            r"importance_retain\[0\] has shape \[4\], expected \[3\] as params\[0\]",
        ),
        (dict(params=[torch.ones(3, dtype=torch.int64)]), TypeError, r"params\[0\] has dtype Long"),
        (
            dict(importance_forget=[torch.ones(3, dtype=torch.complex64)]),
            TypeError,
            r"importance_forget\[0\] has dtype",
        ),
    ],
)
def test_clear_errors(change, error, message):
    values = dict(
        params=[torch.ones(3)], importance_forget=[torch.rand(3)], importance_retain=[torch.rand(3)], ratio=0.5
    )
    with pytest.raises(error, match=message):
        fisher_mask_(**{**values, **change})


@pytest.mark.cuda
def test_devices_may_not_mix():
    with pytest.raises(ValueError, match=r"importance_forget\[0\] is on cpu, but params\[0\] is on cuda:0"):
        fisher_mask_([torch.ones(3, device="cuda")], [torch.ones(3)], [torch.ones(3, device="cuda")], 0.5)


def test_compile(device):
    params, forget, retain = arguments([(64, 3), (7,)], torch.float32, device)
    eager = copies(params)
    counts = fisher_mask_(eager, forget, retain, 0.3)
    compiled = torch.compile(fisher_mask_, fullgraph=True)
    assert torch.equal(compiled(params, forget, retain, 0.3), counts)
    assert all(torch.equal(p, e) for p, e in zip(params, eager, strict=True))


@pytest.mark.slow
def test_more_than_two_to_the_31_entries(device):
    """As many ties: counts of digits exceed 32 bits when signed, and so do ranks."""
    n = 2**31 + 100
    p = torch.ones(n, dtype=torch.bfloat16, device=device)
    forget, retain = torch.zeros_like(p), torch.zeros_like(p)
    forget[-3:] = 1.0
    selected = int((n - 50) / n * n)
    assert fisher_mask_([p], [forget], [retain], (n - 50) / n).item() == selected
    assert p[-4:].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert p[selected - 4 : selected - 2].tolist() == [0.0, 1.0]
