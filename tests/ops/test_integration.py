"""Every op inside of what torch puts around ops: autocast, torch.compile, CUDA graphs, streams, several GPUs."""

import pytest
import torch
from torch import nn

from unlearnx import ops

# By the names of ops a call and its tensors. A call returns one tensor or several, and may write to those given.
CASES = {}


def case(name, call, *tensors):
    CASES[name] = (call, tensors)


def randn(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def rand(*shape):
    return torch.rand(*shape, generator=GENERATOR)


GENERATOR = torch.Generator().manual_seed(0)
LAYERS = {
    "linear": ((randn(6, 5, 9), randn(6, 5, 7)), (), {}, {"v": randn(7, 9)}),
    "conv2d": ((randn(4, 3, 8, 8), randn(4, 5, 8, 8)), (3,), {"padding": 1}, {"v": randn(5, 3, 3, 3)}),
    "embedding": ((torch.arange(12).view(4, 3) % 5, randn(4, 3, 6)), (5,), {}, {"v": randn(5, 6)}),
    "scale_shift": ((randn(4, 3, 6), randn(4, 3, 6)), (), {}, {"v_scale": randn(6), "v_shift": randn(6)}),
}


def layer_case(family, kind):
    pair, sizes, settings, directions = LAYERS[family]
    weight = {"weight": rand(len(pair[0]))}
    more = {"diff": weight, "sq": weight, "sqnorm": {}, "dot": directions}[kind]
    op = getattr(ops, f"{family}_grad_{kind}")

    def call(x, dy, *values):
        return op(x, dy, *sizes, **settings, **dict(zip(more, values, strict=True)))

    case(f"{family}_grad_{kind}", call, *pair, *more.values())


for family in LAYERS:
    for kind in ("diff", "sq", "sqnorm", "dot"):
        layer_case(family, kind)
case("ssd_dampen_", lambda p, f, g: ops.ssd_dampen_([p], [f], [g], 1.0, 0.5), randn(5000), rand(5000), rand(5000))
case("fisher_mask_", lambda p, f, r: ops.fisher_mask_([p], [f], [r], 0.1), randn(5000), rand(5000), rand(5000))
case("lissa_step_", lambda h, v, hv: ops.lissa_step_([h], [v], [hv], 0.1, 2.0), *(randn(5000) for _ in range(3)))
HEAD = randn(40, 8), randn(40, 5), randn(3, 5, 8)
LOOP = {"damping": 0.1, "scale": 2.0, "iterations": 5}
case("softmax_linear_hvp", lambda h, z, v: ops.softmax_linear_hvp(h, z, v, from_logits=True), *HEAD)
case("lissa_softmax_linear", lambda h, z, v: ops.lissa_softmax_linear(h, z, v, **LOOP, from_logits=True), *HEAD)
case("lstm", lambda x, *weights: ops.lstm(x, None, weights), randn(4, 3, 6), *nn.LSTM(6, 5)._flat_weights)


def given(name, device="cpu"):
    """The call and fresh copies of its tensors."""
    call, tensors = CASES[name]
    return call, [t.detach().to(device, copy=True) for t in tensors]


def results(call, tensors):
    """What a call returns and what its tensors are afterwards."""
    returned = call(*tensors)
    return [*((returned,) if torch.is_tensor(returned) else returned), *tensors]


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a.cpu(), e.cpu(), rtol=1e-4, atol=1e-4)


every_op = pytest.mark.parametrize("name", CASES)


def test_no_op_is_missing():
    assert CASES.keys() == set(ops.__all__)


@every_op
def test_autocast_changes_nothing(name, device):
    """Sums of gradients, squares and products of curvature are what low precision spoils: ops stay out of it."""
    expected = results(*given(name, device))
    call, tensors = given(name, device)
    with torch.autocast(device, torch.bfloat16):
        actual = results(call, tensors)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        # The products of an LSTM with its inputs are layers as any others.
        tolerance = 2e-2 if name == "lstm" else 0
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@every_op
def test_compiles_without_graph_breaks(name, device):
    expected = results(*given(name, device))
    call, tensors = given(name, device)
    torch._dynamo.reset()
    assert_equal(results(torch.compile(call, backend="aot_eager", fullgraph=True), tensors), expected)


@pytest.mark.parametrize("name", ["ssd_dampen_", "fisher_mask_", "lissa_step_"])
def test_a_tensor_that_may_not_be_written_is_not(name, device):
    """Autograd hears of a change before it is made, or refuses it."""
    call, tensors = given(name, device)
    with torch.inference_mode():
        written = tensors[0].clone()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        call(written, *tensors[1:])
    assert torch.equal(written, tensors[0])


@pytest.mark.parametrize("op", ["ssd_dampen_", "fisher_mask_", "lissa_step_"])
def test_autograd_hears_of_what_is_written_and_of_nothing_else(op, device):
    """By the function and by the op that it calls; a call that is refused has written nothing."""
    more = {"ssd_dampen_": (1.0, 0.5), "fisher_mask_": (0.1,), "lissa_step_": (0.1, 2.0)}[op]
    lists = [[torch.rand(5, device=device)] for _ in range(3)]
    versions = lambda: [tensors[0]._version for tensors in lists]  # noqa: E731
    for call in (getattr(ops, op), getattr(torch.ops.unlearnx, op)):
        before = versions()
        call(*lists, *more)
        assert versions() == [before[0] + 1, *before[1:]]
        with pytest.raises(ValueError, match="has 0 tensors"):
            call(*lists[:2], [], *more)
        assert versions() == [before[0] + 1, *before[1:]]


@pytest.mark.cuda
@every_op
def test_cuda_graph(name):
    """Captured once and replayed on other values: nothing in an op waits for the device."""
    call, tensors = given(name, "cuda")
    expected = results(*given(name, "cuda"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(*tensors)  # libraries set themselves up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(call, tensors)
    for t, fresh in zip(tensors, given(name, "cuda")[1], strict=True):
        t.copy_(fresh)
    graph.replay()
    assert_equal(captured, expected)


@pytest.mark.cuda
@every_op
def test_runs_on_the_current_stream(name):
    """Tensors that another stream is late to fill: an op on the default stream would read zeros."""
    expected = results(*given(name, "cuda"))
    call, fresh = given(name, "cuda")
    tensors = [torch.zeros_like(t) for t in fresh]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for t, value in zip(tensors, fresh, strict=True):
            t.copy_(value)
        actual = results(call, tensors)
    stream.synchronize()
    assert_equal(actual, expected)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@every_op
def test_runs_where_its_tensors_are(name):
    expected = results(*given(name, "cuda:0"))
    with torch.cuda.device(0):
        actual = results(*given(name, "cuda:1"))
        assert torch.cuda.current_device() == 0
    assert all(a.device == torch.device("cuda:1") for a in actual)
    assert_equal(actual, expected)
