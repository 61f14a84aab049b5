"""The loop on the device, captured in a CUDA graph or not, gives the result of the host's loop."""

import math
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.curvature.zoo import build
from tests.helpers import Lines
from unlearnx.curvature import CurvatureOperator, LiSSA
from unlearnx.curvature.solvers import cuda_graph, lissa
from unlearnx.curvature.solvers.cuda_graph import WARM_UP_CALLS, Replay
from unlearnx.curvature.solvers.lissa_on_device import HOST_CHECK_EVERY, DeviceState
from unlearnx.curvature.solvers.stopping import Progress, StoppingRule
from unlearnx.curvature.solvers.system import System


def network(device="cpu", dtype=torch.float64, count=3, layers=(), **options):
    """A network on 300 samples of very unequal features: its operator and `count` right-hand sides, or a single one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), *layers, nn.Linear(16, 3)).to(device, dtype)
    x = torch.randn(300, 20, dtype=dtype) * torch.logspace(0, -1, 20, dtype=dtype)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0)
    operator = CurvatureOperator(model, F.cross_entropy, (x.to(device), y.to(device)), **options)
    shape = () if count is None else (count,)
    return operator, {k: torch.randn(*shape, *p.shape, dtype=dtype).to(device) for k, p in model.named_parameters()}


def scaled(v, factors):
    """The right-hand sides, each multiplied by its factor."""
    return {k: torch.stack([row * factor for row, factor in zip(t, factors, strict=True)]) for k, t in v.items()}


def zoo(name, count=3, **options):
    model, x, y = build(name)
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), **options)
    return operator, {k: torch.randn(count, *p.shape, dtype=p.dtype) for k, p in model.named_parameters()}


def solved(solver, problem, on_device, monkeypatch):
    """The solution, the number of samples in all products, and how often each loop ran."""
    operator, v = problem()
    loops = {"iterate_on_device": 0, "_host_loop": 0}

    def counting(name, loop):
        def run(*arguments):
            loops[name] += 1
            return loop(*arguments)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(lissa, "can_capture", lambda device: on_device)
        patch.setattr(lissa, "iterate_on_device", counting("iterate_on_device", lissa.iterate_on_device))
        patch.setattr(LiSSA, "_host_loop", counting("_host_loop", LiSSA._host_loop))
        return solver.solve(operator, v), operator.evaluations, loops


def assert_same(actual, expected, **tolerance):
    assert (actual.stopped, actual.iterations) == (expected.stopped, expected.iterations)
    assert actual.scale == expected.scale
    close = dict(equal_nan=True, **(tolerance or dict(rtol=0, atol=0)))
    history = [torch.tensor(s.history, dtype=torch.float64) for s in (actual, expected)]
    torch.testing.assert_close(*history, **close)
    torch.testing.assert_close(actual.x, expected.x, **close)
    torch.testing.assert_close(actual.residual, expected.residual, **close)


def compare(solver, problem, monkeypatch):
    """Check that both loops give the same; return the solution of the host's loop."""
    expected, evaluations, loops = solved(solver, problem, False, monkeypatch)
    assert loops["_host_loop"] > 0 == loops["iterate_on_device"]
    actual, counted, loops = solved(solver, problem, True, monkeypatch)
    assert loops["iterate_on_device"] > 0 == loops["_host_loop"]
    assert_same(actual, expected)
    assert counted == evaluations
    return expected


@pytest.mark.parametrize("count", [None, 1, 5])
@pytest.mark.parametrize("batch_size", [30, 70, 300])
def test_same_run(batch_size, count, monkeypatch):
    """Batches that divide the data, batches with a smaller one at the end of each pass, and all the data."""
    solver = LiSSA(damping=0.0, scale=0.3, batch_size=batch_size, recursion_depth=200, num_repeat=2)
    compare(solver, lambda: network(count=count), monkeypatch)


def stops(solution):
    """The iteration at which each right-hand side stopped."""
    return [sum(not math.isnan(updates[k]) for updates in solution.history) for k in range(len(solution))]


def test_right_hand_sides_that_stop_one_by_one(monkeypatch):
    """Some stop between two checks of the host, after half of them have stopped, or within a pass over the data."""
    solution = compare(LiSSA(0.0, 1.0, 70, 400), lambda: network(count=7), monkeypatch)
    assert len(set(stops(solution))) > 3
    assert max(stops(solution)) < 400
    assert "no longer shrank" in solution.stopped


@pytest.mark.parametrize("depth", [1, 5, HOST_CHECK_EVERY, HOST_CHECK_EVERY + 1, 3 * HOST_CHECK_EVERY - 1])
def test_depths(depth, monkeypatch):
    solution = compare(LiSSA(0.01, 2.0, 70, depth), lambda: network(count=2), monkeypatch)
    assert solution.stopped == f"reached {depth} iterations"


@pytest.mark.parametrize("batch_size", [70, None])
def test_updates_that_are_not_finite(batch_size, monkeypatch):
    """A right-hand side that overflows does not change the others."""

    def problem():
        operator, v = network()
        return operator, scaled(v, [1e140, 1.0, 1e70])

    solution = compare(LiSSA(0.0, 1e-4, batch_size, 300, patience=300), problem, monkeypatch)
    first, second, third = stops(solution)
    assert first < third < second < 300
    assert "not finite" in solution.stopped
    ended = LiSSA(0.0, 1e-4, batch_size, third + 1, patience=300)
    solution = compare(ended, problem, monkeypatch)
    assert solution.x["0.weight"][1].isfinite().all()
    assert not solution.x["0.weight"][0].isfinite().all()


def test_residuals_are_taken_where_updates_are_small(monkeypatch):
    """With scale="auto" right-hand sides converge; one of zeros needs no iteration."""

    def problem():
        operator, v = network(damping=0.1, count=4)
        return operator, scaled(v, [1.0, 0.0, 1e-3, 1.0])

    solution = compare(LiSSA(batch_size=None, tolerance=1e-3), problem, monkeypatch)
    assert solution.converged
    assert stops(solution)[1] == 1
    assert "converged at iteration" in solution.stopped


def test_scale_that_grows(monkeypatch):
    """Some scales diverge, because one sample has far more curvature than the others."""

    def problem():
        operator, v = zoo("mlp")
        operator.rows._samples.read(slice(4, 5))[0].mul_(30)  # a view of the samples in memory
        return operator, v

    compare(LiSSA(damping=0.05, batch_size=1, recursion_depth=60, patience=200), problem, monkeypatch)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", ["cnn", "lstm", "gru", "embedding", "unused", "self-attention"])
def test_models(name, kind, monkeypatch):
    compare(LiSSA(0.01, 3.0, 4, 40), lambda: zoo(name, kind=kind), monkeypatch)


def test_batches_of_several_passes(monkeypatch):
    """The operator's batch size is below the solver's."""
    for batch_size in (70, None):
        compare(LiSSA(0.01, 2.0, batch_size, 30), lambda: network(batch_size=32), monkeypatch)


def test_half_precision(monkeypatch):
    compare(LiSSA(0.01, 2.0, 70, 30), lambda: network(dtype=torch.bfloat16), monkeypatch)


def test_data_that_are_read_and_closed_forms_keep_the_host(monkeypatch):
    model, x, y = build("mlp")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    problem = lambda: (CurvatureOperator(model, F.cross_entropy, Lines(x, y)), v)  # noqa: E731
    assert solved(LiSSA(0.01, 2.0, 4, 5), problem, True, monkeypatch)[2]["iterate_on_device"] == 0
    linear = nn.Linear(6, 3).double()
    v = {k: torch.zeros_like(p) for k, p in linear.named_parameters()}
    v["bias"][0] = 1
    problem = lambda: (CurvatureOperator(linear, F.cross_entropy, (x, y)), v)  # noqa: E731
    assert solved(LiSSA(batch_size=None), problem, True, monkeypatch)[2]["iterate_on_device"] == 0


class Recorder:
    """Counts replays of a graph, and steps that were called."""

    def __init__(self, monkeypatch, waits=False, captures=True):
        self.steps = self.replays = 0

        def captured(step):
            if not captures:
                try:
                    raise RuntimeError("cannot be captured")
                finally:
                    raise ValueError("the capture was cut short")
            return self

        monkeypatch.setattr(cuda_graph, "can_capture", lambda device: True)
        monkeypatch.setattr(cuda_graph, "_capture", captured)
        monkeypatch.setattr(cuda_graph, "_error_on_host_sync", nullcontext)
        self.call = Replay(self.step, torch.device("cpu"))
        self.waits = waits

    def step(self):
        if self.waits and self.steps == WARM_UP_CALLS - 1:
            self.waits = False
            raise RuntimeError("waits for the device")
        self.steps += 1

    def replay(self):
        self.replays += 1


def test_warm_up_is_part_of_the_work(monkeypatch):
    recorder = Recorder(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            recorder.call()
    assert (recorder.steps, recorder.replays) == (WARM_UP_CALLS, 10 - WARM_UP_CALLS)


@pytest.mark.parametrize(
    ("options", "reason", "before"),
    [
        (dict(waits=True), "waits for the device", WARM_UP_CALLS - 1),
        (dict(captures=False), "cannot be captured", WARM_UP_CALLS),
    ],
)
def test_a_failure_loses_nothing(options, reason, before, monkeypatch):
    """Step fails in the last warm-up call or in the capture: there is one warning, and every call runs step once."""
    recorder = Recorder(monkeypatch, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(before):
            recorder.call()
        with pytest.warns(UserWarning, match=f"runs without a CUDA graph, which is slower: {reason}"):
            recorder.call()
        for _ in range(5):
            recorder.call()
    assert recorder.call.failed
    assert (recorder.steps, recorder.replays) == (before + 6, 0)


@pytest.mark.parametrize("copy", [lambda t: t.to("meta"), lambda t: torch.zeros(2, device="meta").copy_(t)])
def test_rehearsals_refuse_copies_from_the_host(copy):
    t = torch.ones(2)
    with cuda_graph._ErrorOnHostCopies():
        t.to(torch.float64).copy_(t + 1)
        with pytest.raises(RuntimeError, match=r"copies a tensor of shape \[2\] from the CPU"):
            copy(t)


class OnDevice(TorchDispatchMode):
    """Collects operations with CPU tensors among their arguments: on a GPU these would be copied."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self.found += [str(func) for t in tensors if t.device.type == "cpu"]
        return func(*args, **(kwargs or {}))


class Ready:
    """An operator whose products are the vectors themselves."""

    def curvature(self, vectors):
        return [[t.clone() for t in v] for v in vectors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_iteration_is_all_on_the_device(dtype):
    """The meta device, whose tensors have no values, stands in for a GPU: reading a value would fail."""
    operator, v = network(dtype=dtype)
    system = System(operator.rows, operator.rows.layout.rows("v", v)[0])
    system.v, system.scale = system.v.to("meta"), 4.0
    progress = Progress(system, [StoppingRule(0.0, 20) for _ in range(3)], 1e-2, 100)
    state = DeviceState(progress, system.v.clone(), 0.01)
    with OnDevice() as operations:
        state.step(Ready())
    assert not operations.found
    with OnDevice() as operations:
        state._update_target * torch.ones(())  # the test notices a CPU tensor
    assert operations.found


@pytest.mark.parametrize("batch_size", [70, 300])
def test_the_host_takes_over_what_cannot_be_captured(batch_size, monkeypatch):
    """The host takes over within a pass over the data; later repetitions see the same batches."""

    def waits():
        raise RuntimeError("waits for the device")

    solver = LiSSA(0.0, 1.0, batch_size, 100, num_repeat=2)
    expected, evaluations, _ = solved(solver, network, False, monkeypatch)
    monkeypatch.setattr(cuda_graph, "can_capture", lambda device: True)
    monkeypatch.setattr(cuda_graph, "_error_on_host_sync", waits)
    with pytest.warns(UserWarning, match="waits for the device"):
        actual, counted, loops = solved(solver, network, True, monkeypatch)
    assert loops == {"iterate_on_device": 2, "_host_loop": 2}
    assert_same(actual, expected)
    assert counted == evaluations


def eager_and_captured(solver, problem, monkeypatch):
    """The solutions of the host's loop and of the captured loop, and the number of captures."""
    graphs = []

    def recording(step):
        graphs.append(capture(step))
        return graphs[-1]

    capture = cuda_graph._capture
    expected, evaluations, _ = solved(solver, problem, False, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph, "_capture", recording)
        operator, v = problem()
        actual = solver.solve(operator, v)
    assert operator.evaluations == evaluations
    return actual, expected, len(graphs)


FLOAT64_TOLERANCE = dict(rtol=1e-8, atol=1e-10)  # libraries may choose other kernels on another stream


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("count", [None, 5])
@pytest.mark.parametrize("batch_size", [70, 100, None])
def test_captured(batch_size, count, kind, monkeypatch):
    """The patience is never reached: rounding could change the iteration at which the rule stops a run."""
    solver = LiSSA(0.01, 2.0, batch_size, 60, patience=1000)
    problem = lambda: network("cuda", count=count, kind=kind)  # noqa: E731
    actual, expected, captures = eager_and_captured(solver, problem, monkeypatch)
    assert captures == 1
    assert_same(actual, expected, **FLOAT64_TOLERANCE)


@pytest.mark.cuda
def test_captured_right_hand_sides_stop_one_by_one(monkeypatch):
    solver = LiSSA(0.0, 1.0, 70, 400)
    actual, expected, captures = eager_and_captured(solver, lambda: network("cuda", count=7), monkeypatch)
    assert captures > 1  # again for the right-hand sides that have not stopped
    assert len(set(stops(actual))) > 3
    assert_same(actual, expected, **FLOAT64_TOLERANCE)


@pytest.mark.cuda
def test_captured_with_a_scale_that_is_found(monkeypatch):
    solver = LiSSA(batch_size=None, tolerance=1e-3)
    actual, expected, captures = eager_and_captured(solver, lambda: network("cuda", damping=0.1), monkeypatch)
    assert captures >= 1
    assert actual.converged
    assert expected.converged
    torch.testing.assert_close(actual.x, expected.x, rtol=1e-2, atol=1e-3)


@pytest.mark.cuda
def test_captured_updates_that_are_not_finite(monkeypatch):
    def problem():
        operator, v = network("cuda")
        return operator, scaled(v, [1e140, 1.0, 1e70])

    first, second, third = stops(eager_and_captured(LiSSA(0.0, 1e-4, 70, 300, patience=300), problem, monkeypatch)[0])
    assert first < third < second < 300
    solution = eager_and_captured(LiSSA(0.0, 1e-4, 70, third + 1, patience=300), problem, monkeypatch)[0]
    assert solution.x["0.weight"][1].isfinite().all()


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cnn", "lstm", "gru", "embedding", "unused", "transformer"])
def test_captured_models(name, monkeypatch):
    def problem():
        model, x, y = build(name)
        operator = CurvatureOperator(model.cuda(), F.cross_entropy, (x.cuda(), y.cuda()))
        torch.manual_seed(1)
        return operator, {k: torch.randn_like(p) for k, p in model.named_parameters()}

    solver = LiSSA(0.01, 3.0, 4, 40, patience=1000)
    actual, expected, captures = eager_and_captured(solver, problem, monkeypatch)
    assert captures == 1
    assert_same(actual, expected, **FLOAT64_TOLERANCE)


class Copying(nn.Module):
    """Copies numbers from the host without waiting."""

    def forward(self, x):
        return x * torch.full((16,), 1.5, dtype=x.dtype).to(x.device, non_blocking=True)


class Waiting(nn.Module):
    """Reads a number from the device, in the forward or in the backward pass."""

    def __init__(self, backward):
        super().__init__()
        self.backward = backward

    def forward(self, x):
        if not self.backward:
            return x * (2.0 if x.sum().item() > 1e9 else 1.0)
        return _WaitingBackward.apply(x)


class _WaitingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * (2.0 if dy.sum().item() > 1e9 else 1.0)


@pytest.mark.cuda
@pytest.mark.parametrize(("backward", "batch_size"), [(False, 70), (True, 70), (True, None)])
def test_a_model_that_waits_for_the_device_runs_on(backward, batch_size, monkeypatch):
    """A warning says why, the results are the same, and torch's settings are restored."""
    solver = LiSSA(0.01, 2.0, batch_size, 40, patience=1000)
    problem = lambda: network("cuda", layers=[Waiting(backward)])  # noqa: E731
    mode, state = torch.cuda.get_sync_debug_mode(), torch.cuda.get_rng_state()
    with pytest.warns(UserWarning, match="runs without a CUDA graph, which is slower: .*synchronizing"):
        actual, expected, captures = eager_and_captured(solver, problem, monkeypatch)
    assert captures == 0
    assert_same(actual, expected, **FLOAT64_TOLERANCE)
    assert torch.cuda.get_sync_debug_mode() == mode
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.cuda.empty_cache()
    torch.randn(2, device="cuda")


@pytest.mark.cuda
def test_a_model_that_copies_from_the_host_runs_on(monkeypatch):
    """Replays would read host memory that was freed."""
    problem = lambda: network("cuda", layers=[Copying()])  # noqa: E731
    with pytest.warns(UserWarning, match=r"which is slower: copies a tensor of shape \[16\] from the CPU"):
        actual, expected, captures = eager_and_captured(LiSSA(0.01, 2.0, 70, 40, patience=1000), problem, monkeypatch)
    assert captures == 0
    assert_same(actual, expected, **FLOAT64_TOLERANCE)


@pytest.mark.cuda
def test_forward_that_waits_is_run_once_for_all_the_data(monkeypatch):
    """Autograd graphs that are kept are recorded before the capture."""
    problem = lambda: network("cuda", layers=[Waiting(False)])  # noqa: E731
    actual, expected, captures = eager_and_captured(LiSSA(0.01, 2.0, None, 40), problem, monkeypatch)
    assert captures == 1
    assert_same(actual, expected, **FLOAT64_TOLERANCE)


@pytest.mark.cuda
def test_captured_data_of_the_host(monkeypatch):
    """Samples on the CPU are moved to the model's device, and the random state does not change."""

    def problem():
        operator, v = network("cuda")
        x, y = operator.rows._samples.read(slice(0, 300))
        return CurvatureOperator(operator.rows.model, F.cross_entropy, (x.cpu(), y.cpu())), v

    state = torch.cuda.get_rng_state()
    actual, expected, captures = eager_and_captured(LiSSA(0.01, 2.0, 70, 40, patience=1000), problem, monkeypatch)
    assert captures == 1
    assert_same(actual, expected, **FLOAT64_TOLERANCE)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.cuda
def test_autocast_is_not_captured(monkeypatch):
    with torch.autocast("cuda", torch.bfloat16):
        _, _, captures = eager_and_captured(LiSSA(0.01, 2.0, 70, 40), lambda: network("cuda"), monkeypatch)
    assert captures == 0


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_captured_on_another_device(monkeypatch):
    actual, expected, captures = eager_and_captured(
        LiSSA(0.01, 2.0, 70, 40, patience=1000), lambda: network("cuda:1"), monkeypatch
    )
    assert captures == 1
    assert torch.cuda.current_device() == 0
    assert_same(actual, expected, **FLOAT64_TOLERANCE)
