"""Streams and memory pools around captures, with a stand-in for the GPU that keeps the books torch keeps."""

from contextlib import contextmanager
from threading import Thread

import pytest
import torch

from unlearnx.curvature.solvers import cuda_graph
from unlearnx.curvature.solvers.cuda_graph import WARM_UP_CALLS, Replay, side_stream

GPU = torch.device("cuda", 0)


class StandIn:
    """What torch.cuda does for a capture: pools that allocations go to, and how often each pool is held."""

    def __init__(self, monkeypatch):
        self.recording, self.held, self.invalid, self.streams = set(), {}, False, []
        functions = {
            "CUDAGraph": self.graph_class(),
            "graph": self.capture,
            "graph_pool_handle": lambda: (0, len(self.held) + 1),
            "current_device": lambda: 0,
            "current_stream": lambda device=None: self,
            "Stream": self.new_stream,
            "stream": self.use,
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": lambda mode: None,
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: self.end(pool), raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: self.release(pool), raising=False)

    def graph_class(self):
        stand_in = self

        class Graph:
            pool = None  # until a capture has ended

            def replay(self):
                assert self.pool

            def __del__(self):
                if self.pool:
                    stand_in.release(self.pool)

        return Graph

    @contextmanager
    def capture(self, graph, pool=None, stream=None, capture_error_mode=None):
        pool = pool or (len(self.held) + 1, 0)
        self.recording.add(pool)
        self.held[pool] = 1
        try:
            yield
        finally:
            if self.invalid:  # raised before the allocator is told
                raise RuntimeError("operation failed due to a previous error during capture")
            self.end(pool)
            graph.pool = pool

    def end(self, pool):
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)

    def release(self, pool):
        self.held[pool] -= 1
        assert self.held[pool] >= 0

    def new_stream(self, device):
        self.streams.append(device)
        return self

    @contextmanager
    def use(self, stream):
        yield

    def wait_stream(self, other):
        pass


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(cuda_graph, "_streams", type(cuda_graph._streams)())
    return StandIn(monkeypatch)


def run(step):
    replay = Replay(step, GPU)
    for _ in range(WARM_UP_CALLS + 3):
        replay()
    return replay


def test_pools_of_graphs_are_given_back(gpu):
    replay = run(lambda: None)
    assert not replay.failed
    assert not gpu.recording
    assert list(gpu.held.values()) == [1]
    del replay
    assert list(gpu.held.values()) == [0]


@pytest.mark.parametrize("invalid", [True, False])
def test_a_capture_that_fails_after_its_rehearsal_leaves_no_pool(gpu, invalid):
    """Otherwise whatever is allocated later goes to the pool of a graph that does not exist."""
    calls = 0

    def step():
        nonlocal calls
        calls += 1
        if gpu.recording:
            gpu.invalid = invalid
            raise RuntimeError("out of memory")

    with pytest.warns(UserWarning, match="runs without a CUDA graph, which is slower: out of memory"):
        replay = run(step)
    assert replay.failed
    assert calls == WARM_UP_CALLS + 4  # and once more in place of the capture
    assert not gpu.recording
    assert list(gpu.held.values()) == [0]


def test_one_stream_a_device(gpu):
    """Libraries keep a workspace for each stream they have met."""
    for device in (GPU, GPU, torch.device("cuda"), torch.device("cuda", 1), GPU):
        with side_stream(device):
            pass
    assert gpu.streams == [0, 1]


def test_threads_do_not_capture_each_other(gpu):
    def use():
        with side_stream(GPU):
            pass

    use()
    thread = Thread(target=use)
    thread.start()
    thread.join()
    assert gpu.streams == [0, 0]
