"""lstm against torch.nn.LSTM, and its derivatives of second order against a cell written out in plain torch."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.utils._pytree import tree_leaves

from tests.helpers import TOLERANCE, threads
from unlearnx.ops import lstm
from unlearnx.ops.lstm import LSTMStack, plain_recurrence
from unlearnx.selftest.references import lstm as written_out

OPTIONS = list(product((1, 2), (False, True), (True, False), (False, True)))  # layers, directions, biases, batch first


def layers(inputs, units, num=1, two_ways=False, biases=True, dtype=torch.float64, device="cpu", **settings):
    torch.manual_seed(0)
    module = torch.nn.LSTM(inputs, units, num, bias=biases, bidirectional=two_ways, **settings)
    return module.to(device, dtype)


def problem(module, steps, rows, dtype=torch.float64, device="cpu"):
    """Leaves: input, first states and weights of a module."""
    kinds = module.num_layers * (1 + module.bidirectional)
    shapes = [(steps, rows, module.input_size)] + 2 * [(kinds, rows, module.hidden_size)]
    if module.batch_first:
        shapes[0] = (rows, steps, module.input_size)
    leaves = [torch.randn(s, dtype=dtype, device=device).requires_grad_() for s in shapes]
    return leaves, [w.detach().clone().requires_grad_() for w in module._flat_weights]


def call(module, train=False):
    """lstm with the settings of a module, as a function of leaves."""
    settings = module.bias, module.num_layers, module.dropout, train, module.bidirectional, module.batch_first
    return lambda x, h, c, *weights: lstm(x, (h, c), weights, *settings)


def assert_same(got, expected, **tolerance):
    for a, b in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a.double(), b.double(), **(tolerance or dict(rtol=1e-10, atol=1e-12)))


@pytest.mark.parametrize(("num", "two_ways", "biases", "batch_first"), OPTIONS)
def test_derivatives(num, two_ways, biases, batch_first):
    module = layers(2, 2, num, two_ways, biases, batch_first=batch_first)
    leaves, weights = problem(module, 3, 2)
    f, inputs = call(module), (*leaves, *weights)
    some = num == 2 or two_ways  # in random directions, not in all: a pass for each takes long
    assert gradcheck(f, inputs, check_forward_ad=True, fast_mode=some)
    assert gradgradcheck(f, inputs, fast_mode=some)
    forward = dict(check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False)
    assert gradgradcheck(f, inputs, fast_mode=some, **forward)


@pytest.mark.parametrize(("num", "two_ways", "biases", "batch_first"), OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_equals_torch(num, two_ways, biases, batch_first, dtype, tolerance):
    module = layers(7, 33, num, two_ways, biases, dtype, batch_first=batch_first)
    leaves, weights = problem(module, 9, 5, dtype)
    got = call(module)(*leaves, *weights)
    expected = torch.lstm(leaves[0], leaves[1:], weights, biases, num, 0.0, False, two_ways, batch_first)
    assert [t.shape for t in got] == [t.shape for t in expected]
    assert_same(got, expected, rtol=tolerance, atol=tolerance)
    along = [torch.randn_like(t) / t.numel() for t in got]
    inputs = [*leaves, *weights]
    for a, b in zip(torch.autograd.grad(got, inputs, along), torch.autograd.grad(expected, inputs, along), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    module = layers(7, 33, 2, True, dtype=dtype)
    leaves, weights = problem(module, 9, 5, dtype)
    got = call(module)(*leaves, *weights)
    wide = [t.detach().double() for t in (*leaves, *weights)]
    assert all(t.dtype == dtype for t in got)
    assert_same(got, call(module)(*wide), **TOLERANCE[dtype])
    assert all(t.dtype == dtype for t in torch.autograd.grad(got[0].float().sum(), [*leaves, *weights]))


def in_double(inputs, h, c, weight):
    """The recurrence of one layer and direction, every step in plain torch in float64; states as the kernels return."""
    hidden, cells = [h.double()], [c.double()]
    for step in inputs.double():
        i, f, g, o = (step + hidden[-1] @ weight.double().T).chunk(4, -1)
        cells.append(f.sigmoid() * cells[-1] + i.sigmoid() * g.tanh())
        hidden.append(o.sigmoid() * cells[-1].tanh())
    return torch.stack(hidden).to(inputs.dtype), torch.stack(cells).to(inputs.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1, 2, 2)])  # steps, rows, inputs, units
def test_half_loses_in_torchs_products_only(sizes, dtype):
    """A single unit in bfloat16 may be 30 % off where its terms cancel: W_ih x and the biases are rounded by torch.

    With the same products but the recurrence in float64, outputs, gradients and gradients of gradients are the same.
    """
    steps, rows, inputs, units = sizes
    shapes = [(steps, rows, inputs), *[(1, rows, units)] * 2, (4 * units, inputs), (4 * units, units)]
    shapes += [(4 * units,)] * 2

    def results(given, directions, recurrence):
        x, h, c, *weights = leaves = [t.clone().requires_grad_() for t in given]
        stack = LSTMStack(weights, True, 1, 0.0, False, False, False)
        stack.recurrence = recurrence
        output = stack.run(x, (h, c))[0]
        gradients = torch.autograd.grad(output, leaves, directions[0], create_graph=True)
        return [output, *gradients, *torch.autograd.grad(gradients, leaves, directions[1:])]

    for seed in range(60):
        torch.manual_seed(seed)
        given = [(torch.randn(s) / s[-1] ** 0.5).to(dtype) for s in shapes]
        directions = [torch.randn_like(t) for t in (given[0].new_empty(steps, rows, units), *given)]
        pairs = (results(given, directions, recurrence) for recurrence in (plain_recurrence, in_double))
        for got, expected in zip(*pairs, strict=True):
            torch.testing.assert_close(got, expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_transforms():
    module = layers(3, 2)
    (x, *hx), weights = problem(module, 4, 3)
    x, hx, weights = x.detach(), tuple(t.detach() for t in hx), tuple(t.detach() for t in weights)

    def ours(weights, x, hx):
        return lstm(x, hx, weights)[0].square().sum()

    def plain(weights, x, hx):
        return written_out(x, hx, weights).square().sum()

    def same(transform, *args):
        assert_same(transform(ours)(*args), transform(plain)(*args))

    v = tuple(torch.randn_like(t) for t in weights)
    for transform in (
        grad,
        lambda f: jacrev(jacrev(f)),
        lambda f: jacfwd(jacrev(f)),
        lambda f: jacrev(jacfwd(f)),
        lambda f: lambda w, *rest: jvp(lambda w: grad(f)(w, *rest), (w,), (v,)),
        lambda f: grad(lambda w, *rest: jvp(lambda w: f(w, *rest), (w,), (v,))[1]),
    ):
        same(transform, weights, x, hx)
    for transform in (grad, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacrev(f))):
        rows = tuple(t.movedim(1, 0).unsqueeze(2) for t in hx)
        same(lambda f, t=transform: vmap(t(f), in_dims=(None, 1, 0)), weights, x.unsqueeze(2), rows)
        several = tuple(torch.stack([t, 1.1 * t]) for t in weights)
        same(lambda f, t=transform: vmap(t(f), in_dims=(0, None, None)), several, x, hx)


def test_hessian_product_of_a_character_model():
    """The product with the Hessian, in float64, equals that of the unrolled cell."""
    torch.manual_seed(0)
    module = layers(16, 32)
    _, weights = problem(module, 1, 1)
    x, hx = torch.randn(24, 8, 16, dtype=torch.float64), torch.zeros(2, 1, 8, 32, dtype=torch.float64)
    v = [torch.randn_like(w) for w in weights]
    products = []
    for run in (lambda: lstm(x, hx, weights)[0], lambda: written_out(x, hx, weights)):
        gradient = torch.autograd.grad(run().sin().sum(), weights, create_graph=True)
        products.append(torch.autograd.grad(gradient, weights, v))
    assert_same(*products)


def test_no_first_states():
    module = layers(3, 4, 2)
    (x, h, c), weights = problem(module, 5, 2)
    zeros = torch.zeros_like(h), torch.zeros_like(c)
    results = [lstm(x, hx, weights, True, 2) for hx in (None, zeros)]
    assert_same(*results)
    assert_same(*(torch.autograd.grad(r[0].sum(), [x, *weights]) for r in results))


def test_dropout_draws_as_torch():
    module = layers(3, 4, 2, dropout=0.5)
    (x, h, c), weights = problem(module, 5, 2)
    torch.manual_seed(1)
    got = call(module, train=True)(x, h, c, *weights)
    torch.manual_seed(1)
    assert_same(got, torch.lstm(x, (h, c), weights, True, 2, 0.5, True, False, False))
    assert_same(call(module)(x, h, c, *weights), torch.lstm(x, (h, c), weights, True, 2, 0.5, False, False, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_gates(dtype):
    """Activations at their ends: neither overflow nor loss of the small values of tanh."""
    values = np.concatenate([np.linspace(-120, 120, 4001), np.geomspace(1e-30, 1, 300), -np.geomspace(1e-30, 1, 300)])
    gates = torch.tensor(values, dtype=dtype)
    units = len(gates)
    inputs = torch.stack([gates, torch.full_like(gates, -200.0), gates, gates.flip(0)]).view(1, 1, 4 * units)
    weight = torch.zeros(4 * units, units, dtype=dtype)
    hidden, cells, kept = torch.ops.unlearnx.lstm_forward(inputs, None, None, weight)
    wide = inputs.double().view(4, units)
    cell = wide[0].sigmoid() * wide[2].tanh()
    relative = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(cells[1, 0].double(), cell, rtol=relative, atol=1e-37)
    torch.testing.assert_close(hidden[1, 0].double(), wide[3].sigmoid() * cell.tanh(), rtol=relative, atol=1e-37)
    assert torch.equal(kept, inputs)


@pytest.mark.parametrize(("steps", "rows", "units"), [(1, 1, 1), (4, 3, 5), (2, 0, 5), (1, 3, 129)])
def test_ops(steps, rows, units):
    states, gates = (steps + 1, rows, units), (steps, rows, 4 * units)
    new = lambda *shape: torch.randn(*shape, dtype=torch.float64).requires_grad_()  # noqa: E731
    weight = new(4 * units, units)
    opcheck(torch.ops.unlearnx.lstm_forward, (new(*gates), new(rows, units), None, weight))
    opcheck(torch.ops.unlearnx.lstm_forward, (new(*gates), None, new(rows, units), weight))
    plain = [new(*s).detach() for s in (states, states, gates, states, gates)]
    opcheck(torch.ops.unlearnx.lstm_backward, (*plain, weight.detach(), True))
    opcheck(torch.ops.unlearnx.lstm_backward, (plain[0], None, None, *plain[3:], weight.detach(), False))
    start = new(rows, units).detach()
    opcheck(torch.ops.unlearnx.lstm_tangent, (plain[2], start, None, *plain[3:], weight.detach()))
    opcheck(torch.ops.unlearnx.lstm_curvature, (plain[3], plain[4], plain[0], plain[2], plain[1], plain[0]))


def test_raw_op_and_compiled():
    module = layers(3, 4, 2, True, dtype=torch.float32)
    (x, h, c), weights = problem(module, 5, 2, torch.float32)
    expected = call(module)(x, h, c, *weights)
    assert_same(torch.ops.unlearnx.lstm(x, [h, c], weights, True, 2, bidirectional=True), expected)
    compiled = torch.compile(call(module), backend="aot_eager", fullgraph=True)(x, h, c, *weights)
    assert_same(compiled, expected)
    gradients = [torch.autograd.grad(r[0].sum(), [x, h, *weights]) for r in (compiled, expected)]
    assert_same(*gradients, rtol=1e-5, atol=1e-6)


def test_third_derivatives_are_refused():
    module = layers(2, 2)
    (x, h, c), weights = problem(module, 2, 1)
    (first,) = torch.autograd.grad(lstm(x, (h, c), weights)[0].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(second.sum(), x)


def test_threads_do_not_change_results():
    module = layers(16, 64, dtype=torch.float32)
    (_, h, _), weights = problem(module, 6, 300, torch.float32)
    inputs = torch.randn(6, 300, 256)
    results = []
    for n in (1, 2):
        with threads(n):
            hidden, cells, gates = torch.ops.unlearnx.lstm_forward(inputs, h[0].detach(), None, weights[1].detach())
            results.append(torch.ops.unlearnx.lstm_curvature(cells, gates, cells, gates, hidden, cells))
    assert_same(*results, rtol=1e-5, atol=1e-5)


def test_non_contiguous():
    module = layers(6, 4)
    (x, h, c), weights = problem(module, 5, 4)
    x = torch.randn(6, 5, 8, dtype=torch.float64).permute(1, 2, 0)[:, ::2]
    h, c = (torch.randn(4, 4, 1, dtype=torch.float64).permute(2, 1, 0) for _ in range(2))
    assert_same(lstm(x, (h, c), weights), lstm(x.contiguous(), (h.contiguous(), c.contiguous()), weights))


def test_bad_input():
    module = layers(3, 4)
    (x, h, c), weights = problem(module, 5, 2)
    hx = (h, c)
    with pytest.raises(ValueError, match=r"input has shape \[5, 2, 4\].*expected \(T, N, 3\)"):
        lstm(torch.zeros(5, 2, 4, dtype=torch.float64), hx, weights)
    with pytest.raises(ValueError, match="at least one step"):
        lstm(x[:0], hx, weights)
    with pytest.raises(ValueError, match=r"hx has shapes .* expected 2 of \[1, 2, 4\]"):
        lstm(x, (h[:, :1], c), weights)
    with pytest.raises(ValueError, match="weights has 3 tensors, expected 4"):
        lstm(x, hx, weights[:3])
    with pytest.raises(ValueError, match=r"weights\[2\] has shape"):
        lstm(x, hx, [*weights[:2], weights[2][:3], weights[3]])
    with pytest.raises(TypeError, match=r"weights\[0\] has dtype torch.float32, but input has torch.float64"):
        lstm(x, hx, [w.float() for w in weights])
    with pytest.raises(TypeError, match=r"input has dtype torch\.int64"):
        lstm(torch.zeros(5, 2, 3, dtype=torch.int64), hx, weights)
    projected = torch.nn.LSTM(3, 4, proj_size=2).double()
    with pytest.raises(ValueError, match="proj_size"):
        lstm(x, hx, projected._flat_weights)
    with pytest.raises(ValueError, match=r"lstm_forward: weight has shape \[4, 4\], expected \(4H, H\)"):
        torch.ops.unlearnx.lstm_forward(torch.zeros(2, 2, 16), None, None, torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match="TypeError: lstm_forward: inputs has dtype"):
        torch.ops.unlearnx.lstm_forward(torch.zeros(2, 2, 16).half(), None, None, torch.zeros(16, 4).half())
    with pytest.raises(ValueError, match="lstm_backward: cells has shape"):
        torch.ops.unlearnx.lstm_backward(None, None, None, *map(torch.zeros, ((2, 2, 4), (2, 2, 16), (16, 4))), True)


def op_arguments(steps, rows, units, dtype, device):
    """Arguments of the four ops, by name."""
    new = lambda *shape: torch.randn(*shape).to(device, dtype)  # noqa: E731
    states, gates, weight = (steps + 1, rows, units), (steps, rows, 4 * units), new(4 * units, units) / (units + 1)
    h, c, inputs, kept, cells = new(rows, units), new(rows, units), new(*gates), new(*gates), new(*states)
    to_hidden, to_cells, to_gates = new(*states), new(*states), new(*gates)
    return [
        ("lstm_forward", (inputs, h, c, weight)),
        ("lstm_forward", (inputs, None, c, weight)),
        ("lstm_forward", (inputs, None, None, weight)),
        ("lstm_backward", (to_hidden, to_cells, to_gates, cells, kept, weight, True)),
        ("lstm_backward", (to_hidden, to_cells, to_gates, cells, kept, weight, False)),
        ("lstm_backward", (to_hidden, None, None, cells, kept, weight, True)),
        ("lstm_backward", (None, to_cells, None, cells, kept, weight, True)),
        ("lstm_backward", (None, None, to_gates, cells, kept, weight, False)),
        ("lstm_tangent", (inputs, h, c, cells, kept, weight)),
        ("lstm_tangent", (inputs, None, c, cells, kept, weight)),
        ("lstm_tangent", (inputs, None, None, cells, kept, weight)),
        ("lstm_curvature", (cells, kept, to_cells, inputs, to_hidden, to_cells)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 65, 31), (4, 3, 129), (2, 0, 5), (2, 5, 0)])
def test_ops_equal_those_in_double_on_the_cpu(size, dtype, device):
    for op, arguments in op_arguments(*size, dtype, device):
        got = getattr(torch.ops.unlearnx, op)(*arguments)
        wide = [t.double().cpu() if torch.is_tensor(t) else t for t in arguments]
        for a, b in zip(got, getattr(torch.ops.unlearnx, op)(*wide), strict=True):
            assert a.dtype == dtype
            assert a.device.type == device
            largest = b.abs().max().item() if b.numel() else 1.0
            scale = max(1.0, largest) * TOLERANCE[dtype]["rtol"]
            torch.testing.assert_close(a.double().cpu(), b, rtol=0, atol=scale)


@pytest.mark.cuda
def test_opcheck_on_cuda():
    for op, arguments in op_arguments(3, 4, 5, torch.float32, "cuda"):
        opcheck(getattr(torch.ops.unlearnx, op), arguments)


def hessian_product(module, leaves, weights, v):
    """Outputs, gradients and the product of the Hessian with v, of an uneven function of all results."""
    inputs = [*leaves, *weights]
    results = call(module)(*inputs)
    loss = sum((k * t).sin().sum() for k, t in enumerate(results, 1))
    gradient = torch.autograd.grad(loss, inputs, create_graph=True)
    return [*results, *gradient, *torch.autograd.grad(gradient, inputs, v)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_on_every_device(dtype, device):
    module = layers(7, 33, 2, True)
    problems = problem(module, 5, 3)
    inputs = [t for group in problems for t in group]
    v = [torch.randn_like(t) for t in inputs]
    expected = hessian_product(module, *problems, v)
    moved = [[t.detach().to(device, dtype).requires_grad_() for t in group] for group in problems]
    got = hessian_product(module, *moved, [t.to(device, dtype) for t in v])
    for a, b in zip(got, expected, strict=True):
        assert a.device.type == device
        scale = max(1.0, b.abs().max().item()) * TOLERANCE[dtype]["rtol"]
        torch.testing.assert_close(a.double().cpu(), b, rtol=0, atol=scale)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_gates_on_cuda(dtype):
    gates = torch.cat([torch.linspace(-120, 120, 4001), torch.logspace(-30, 0, 300), -torch.logspace(-30, 0, 300)])
    inputs = torch.stack([gates, gates.flip(0), gates, gates]).to(dtype)
    c, weight = gates[None].to(dtype), torch.zeros(inputs.numel(), len(gates), dtype=dtype)
    hidden, cells, _ = torch.ops.unlearnx.lstm_forward(inputs.view(1, 1, -1).cuda(), None, c.cuda(), weight.cuda())
    i, f, g, o = inputs.double()
    cell = f.sigmoid() * c[0].double() + i.sigmoid() * g.tanh()
    relative = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(cells[1, 0].double().cpu(), cell, rtol=relative, atol=1e-37)
    torch.testing.assert_close(hidden[1, 0].double().cpu(), o.sigmoid() * cell.tanh(), rtol=relative, atol=1e-37)


@pytest.mark.cuda
def test_captured_in_a_graph():
    """Gradients and Hessian products are replayed for other inputs: no op waits for the device."""
    module = layers(7, 33, 2, True, dtype=torch.float32, device="cuda")
    leaves, weights = problem(module, 5, 3, torch.float32, "cuda")
    v = [torch.randn_like(t) for t in (*leaves, *weights)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm-up: handles of the BLAS
        for _ in range(3):
            hessian_product(module, leaves, weights, v)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = hessian_product(module, leaves, weights, v)
    with torch.no_grad():
        for t in (*leaves, *weights):
            t.copy_(torch.randn_like(t))
    graph.replay()
    expected = hessian_product(module, leaves, weights, v)
    for a, b in zip(captured, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.cuda
def test_on_the_current_stream():
    """On a stream where the arguments arrive late; kernels on another one would not see them."""
    for op, arguments in op_arguments(4, 65, 31, torch.float64, "cuda"):
        call_op = getattr(torch.ops.unlearnx, op)
        expected = call_op(*arguments)
        late = [torch.zeros_like(t) if torch.is_tensor(t) else t for t in arguments]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            for t, value in zip(late, arguments, strict=True):
                if torch.is_tensor(t):
                    t.copy_(value)
            got = call_op(*late)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        assert_same(got, expected)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_device():
    for op, arguments in op_arguments(3, 5, 31, torch.float64, "cuda:0"):
        moved = [t.to("cuda:1") if torch.is_tensor(t) else t for t in arguments]
        got = getattr(torch.ops.unlearnx, op)(*moved)
        assert all(t.device == torch.device("cuda", 1) for t in got)
        assert_same([t.cpu() for t in got], [t.cpu() for t in getattr(torch.ops.unlearnx, op)(*arguments)])


@pytest.mark.cuda
def test_devices_belong_together():
    inputs, weight = torch.zeros(2, 3, 16, device="cuda"), torch.zeros(16, 4)
    with pytest.raises(ValueError, match="lstm_forward: weight is on cpu, but inputs is on cuda:0"):
        torch.ops.unlearnx.lstm_forward(inputs, None, None, weight)
    with pytest.raises(ValueError, match="lstm_forward: weight is on cuda:0, but inputs is on cpu"):
        torch.ops.unlearnx.lstm_forward(inputs.cpu(), None, None, weight.cuda())
